"""The report of `alignlab rlhf`: one page, and a few lines for the terminal, from what the run recorded."""

from __future__ import annotations

from pathlib import Path

from alignlab.align.diagnostics.alarms import FIRST_LOOK
from alignlab.align.report import aligned
from alignlab.align.report_findings import clip, duration
from alignlab.align.report_sections import p_value, thinned
from alignlab.align.rlhf.account import MODELS, STAGES, Account, open_account, plain, share, signed
from alignlab.core.run_record import RunRecord
from alignlab.stats.interval import Interval
from alignlab.tasks.judges.pointwise import question_text
from alignlab.viz.figures import difference_plot, kl_reward, line
from alignlab.viz.markup import Badge, emphasis
from alignlab.viz.page import KeyNumber, Page

CURVES = (
    ("KL to the model before", "kl", "nats an answer"),
    ("length", "response_length", "tokens an answer"),
    ("entropy", "entropy", "nats a token"),
)
SHOWN = 3
"""Examples of each kind."""
LONGEST = 900
"""Characters shown of an answer."""


def build_report(run: RunRecord) -> Page:
    """The page for a run of `alignlab rlhf`, finished or not. RunError for another kind of run."""
    account = open_account(run)
    page = Page(f"RLHF report: {Path(str(account.config.get('model', run.name))).name}", lede(account))
    if not account.finished:
        page.text(emphasis("**This run is unfinished.** What follows is what there is so far."))
    add_outcome(page, account)
    add_curves(page, account)
    add_alarms(page, account)
    add_comparisons(page, account)
    add_judge(page, account)
    add_reward_model(page, account)
    add_samples(page, account)
    add_data(page, account)
    return page.footer(f"Run {run.path.name}. Every number on this page is computed from the files of that run.")


def lede(account: Account) -> str:
    """What was done, in one sentence."""
    first = "supervised fine-tuning, then " if "supervised" in account.stages else ""
    reward = ", ".join(account.config.get("reward") or []) or "a reward model trained here"
    return (
        f"{first}{account.method.upper()} against {reward}."[:1].upper()
        + (f"{first}{account.method.upper()} against {reward}."[1:])
    )


def add_outcome(page: Page, account: Account) -> None:
    """Cards of key numbers, and what they mean."""
    if not account.measures:
        return
    cards: list[KeyNumber] = []
    for quantity in account.quantities:
        found = account.difference(quantity, account.before)
        if found is not None:
            step = Interval.from_dict(found["difference"])
            was, now = (plain(account.mean(quantity, name)) for name in (account.before, "rl"))
            note = f"{was} → {now}; 95 % [{step.low:+.3f}, {step.high:+.3f}]; n = {step.n}"
            cards.append((quantity.capitalize(), f"{step.estimate:+.3f}", note, str(found["verdict"])))
    for earlier, wins in account.measures.get("wins", {}).items():
        rate = wins.get("corrected") or wins.get("raw")
        if rate is not None:
            kind = "corrected for the judge's error" if wins.get("corrected") else "not corrected"
            name, found = f"Wins over {MODELS[earlier]}", account.difference("wins", earlier)
            shown = Interval.from_dict(rate)
            note = f"95 % [{100 * shown.low:.1f}, {100 * shown.high:.1f}]; n = {shown.n}; {kind}"
            cards.append(
                (name, f"{100 * shown.estimate:.1f} %", note, None if found is None else str(found["verdict"]))
            )
    if account.measures.get("kl") is not None:
        kl = Interval.from_dict(account.measures["kl"])
        cards.append((f"KL to {MODELS[account.before]}", f"{kl.estimate:.2f} nats", f"{plain(kl)} an answer", None))
    short, long = (Interval.from_dict(account.measures["length"][name]) for name in (account.before, "rl"))
    cards.append(("Length", f"{long.estimate:.1f} tokens", f"before: {short.estimate:.1f}", None))
    cards.append(("Time of all stages", duration(account.seconds), f"{len(account.stages)} stages", None))
    page.key_numbers(cards)
    told = [*account.warnings(), *account.verdicts()]
    page.text(emphasis(" ".join(told)))
    count = len(account.measures.get("differences", []))
    family = f"all {count} comparisons" if count > 1 else "the only comparison"
    page.text(
        f"Verdicts are paired by prompt and hold after Holm's correction over {family} on this page, at "
        f"5 %; intervals are 95 % for each alone. Answers to held-out prompts were drawn at temperature "
        f"{account.measures['temperature']:g}. “Tied” means that the data show no difference, not that there is none."
    )


def add_curves(page: Page, account: Account) -> None:
    """Reward and gold by step, reward against KL, and the quantities that show a reward being exploited."""
    rows = thinned(account.history)
    if not rows:
        return
    page.heading("Training")
    series = {name: [(r["step"], r[name]) for r in rows if name in r] for name in ("reward", "gold")}
    series |= {
        name.removeprefix("reward/"): [(r["step"], r[name]) for r in rows if name in r]
        for name in dict.fromkeys(key for r in rows for key in r if key.startswith("reward/"))
    }
    page.figure(
        line({name: points for name, points in series.items() if points}, x_label="rollout batch", y_label="mean"),
        "Mean over the answers of each rollout batch, at temperature 1: the reward that is maximised, with its penalty "
        "for missing ends, and the gold reward, which is only looked at, where there is one.",
    )
    multipliers = sorted({name for row in rows for name in row if name.startswith("multiplier/")})
    if multipliers:
        lines = {name.split("/", 1)[1]: [(r["step"], r[name]) for r in rows if name in r] for name in multipliers}
        page.figure(
            line(lines, x_label="rollout batch", y_label="multiplier"),
            "What a unit of each constraint's violation costs: it rises while the constraint is not met.",
        )
    updates = [row for row in rows if "kl" in row and "reward" in row]
    if updates:
        page.figure(kl_reward(updates), "Reward against how far the policy has moved from where it started.")
    for title, name, unit in CURVES:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            page.figure(
                line({title: points}, x_label="rollout batch", y_label=unit), f"{title[0].upper()}{title[1:]}, {unit}"
            )


def add_alarms(page: Page, account: Account) -> None:
    """What looks wrong in the training."""
    if not account.history:
        return
    page.heading("Alarms")
    found = account.alarms()
    if not found:
        few = f"{len(account.history)} rollout batches are too few to look for them"
        none = "None; `alignlab diagnose` has the details."
        page.text(emphasis(f"{few}." if len(account.history) < FIRST_LOOK else none))
        return
    rows = []
    for alarm in found:
        ended = "" if alarm.standing else " It was no longer so at the end."
        rows.append([alarm.name, alarm.step, Badge(str(alarm.severity)), f"{alarm.sentence}{ended}"])
    page.table(["Alarm", "Step", "How bad", "What was seen"], rows)


def add_comparisons(page: Page, account: Account) -> None:
    """Every comparison in numbers."""
    found = account.measures.get("differences", [])
    if not found:
        return
    page.heading("Before and after")
    rows = []
    for d in found:
        step = Interval.from_dict(d["difference"])
        rows.append(
            [d["quantity"], f"policy − {d['earlier']}", signed(step), Badge(d["verdict"]), p_value(d["adjusted_p"])]
        )
    shown = {f"{d['quantity']}: policy − {d['earlier']}": Interval.from_dict(d["difference"]) for d in found}
    page.figure(
        difference_plot(shown, percent=False),
        "Differences with 95 % intervals, each in its own units; wins: share of wins less one half.",
    )
    page.table(["Measure", "Models", "Difference, 95 %", "Verdict", "p (Holm)"], rows)
    means = [
        [quantity, MODELS[name], account.mean(quantity, name)]
        for quantity in account.quantities
        for name in account.models
    ]
    page.table(["Measure", "Model", "Mean, 95 %"], means)


def add_judge(page: Page, account: Account) -> None:
    """The win rate and the judge's own error."""
    found = account.measures.get("wins", {})
    if not found:
        return
    page.heading("Win rate")
    page.text(
        "A judge that took no part in training compares the policy's answer with the earlier model's; a tie counts one "
        "half. The corrected rate is what lies behind its verdicts when it errs here as often as on the pairs with "
        "people's verdicts on which its error was measured; its interval holds that error too. Answers that differ in "
        "kind from those pairs may be judged better or worse than this."
    )
    rows: list[list[object]] = []
    for earlier, wins in found.items():
        if "failed" in wins:
            rows.append([MODELS[earlier], None, None, None, None, wins["failed"], "–", "–"])
            continue
        labels = wins["labels"]
        quality = "no labels" if labels is None else share(Interval.from_dict(labels["accuracy"]))
        corrected = "–" if wins["corrected"] is None else share(Interval.from_dict(wins["corrected"]))
        counts = [wins[name] for name in ("wins", "ties", "losses", "missing")]
        rows.append([MODELS[earlier], *counts, share(Interval.from_dict(wins["raw"])), corrected, quality])
    head = ["Against", "Wins", "Ties", "Losses", "No verdict", "Judge's rate", "Corrected", "Judge agrees with people"]
    page.table(head, rows)


def add_reward_model(page: Page, account: Account) -> None:
    """How well the trained reward models agree with comparisons of other dialogues."""
    rows = []
    for stage in ("reward-model", "judge-model"):
        made = account.output(stage)
        if made:
            accuracy = Interval.from_dict(made["measures"]["accuracy"])
            rows.append([STAGES[stage], made["pairs"], made["steps"], share(accuracy)])
    if rows:
        page.heading("Reward models")
        page.table(["Model", "Comparisons", "Updates", "Agreement on comparisons kept back"], rows)


def add_samples(page: Page, account: Account) -> None:
    """The same prompt answered by each model: where the reward rose and fell most, and some as they come."""
    if not account.rows or not account.quantities:
        return
    first, before = account.quantities[0], account.before

    def gain(row: dict[str, dict[str, dict[str, float]]]) -> float:
        return row["scores"][first]["rl"] - row["scores"][first][before]

    ordered = sorted(account.rows, key=gain)
    page.heading("Same prompt, each model")
    kinds = {
        f"Largest gain in {first}": ordered[::-1][:SHOWN],
        f"Largest loss in {first}": ordered[:SHOWN],
        "As they come": account.rows[:SHOWN],
    }
    for title, rows in kinds.items():
        page.heading(title, level=3)
        page.side_by_side([example(row, account.models) for row in rows])


def example(row: dict[str, object], models: list[str]) -> dict[str, object]:
    """One prompt with every model's answer and its scores."""
    answers, scores = row["answers"], row["scores"]
    assert isinstance(answers, dict)
    assert isinstance(scores, dict)
    columns = []
    for name in models:
        told = ", ".join(f"{quantity} {by_model[name]:+.2f}" for quantity, by_model in scores.items())
        columns.append((f"{name}: {told}".replace("-", "−"), clip(answers[name].strip(), LONGEST) or "(empty)"))
    return {"title": clip(question_text(row["prompt"]), 240), "columns": columns}  # type: ignore[arg-type]


def add_data(page: Page, account: Account) -> None:
    """What was learned from, what was left out, and what every stage cost."""
    counts = account.output("material")
    if counts:
        page.heading("Data")
        page.text("Nothing that is measured shares a dialogue with anything that was learned from.")
        page.table(["What", "How many"], [[name.replace("_", " "), count] for name, count in counts.items()])
    page.heading("Cost")
    rows = [
        [STAGES.get(name, name), duration(record.seconds), record.attempts] for name, record in account.stages.items()
    ]
    page.table(["Stage", "Time", "Starts"], rows)


def summary_lines(run: RunRecord) -> list[str]:
    """The outcome in lines of plain text."""
    account = open_account(run)
    lines = []
    if account.measures:
        rows = [
            ["", *(f"{name}, mean [95 %]" for name in account.models), f"policy − {account.before} [95 %]", "verdict"]
        ]
        for quantity in account.quantities:
            found = account.difference(quantity, account.before)
            means = [plain(account.mean(quantity, name)) for name in account.models]
            assert found is not None
            step = signed(Interval.from_dict(found["difference"]))
            rows.append([quantity, *means, step, str(found["verdict"])])
        lengths = [plain(Interval.from_dict(account.measures["length"][name])) for name in account.models]
        rows.append(["tokens", *lengths, "", ""])
        lines = aligned(rows)
        if account.measures.get("kl") is not None:
            lines.append(
                f"KL to {MODELS[account.before]}  {plain(Interval.from_dict(account.measures['kl']))} nats an answer"
            )
        lines += [account.win_sentence(*item).replace("**", "") for item in account.measures.get("wins", {}).items()]
        lines += [warning.replace("**", "") for warning in account.warnings()]
    lines += [f"alarm at step {alarm.step}: {alarm.sentence}" for alarm in account.alarms()]
    if not account.finished:
        lines.append("unfinished: the command that started it goes on where it stopped")
    return [*lines, f"time {duration(account.seconds)}"]
