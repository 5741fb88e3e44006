"""`alignlab diagnose` in words: alarms, the KL account, what could not be looked for."""

from __future__ import annotations

from alignlab.align.diagnostics.alarms import BLOCKS, Alarm, Limits, Look
from alignlab.align.diagnostics.kl_budget import KLBudget
from alignlab.align.diagnostics.reading import Training
from alignlab.align.diagnostics.reward_checks import length_account
from alignlab.stats.interval import Interval

CURVES = (
    ("reward", "reward"),
    ("gold", "gold reward"),
    ("kl", "KL, nats a response"),
    ("response_length", "length, tokens"),
    ("entropy", "entropy, nats a token"),
)
"""What is drawn and told of every training, where it was logged."""
NEEDS = {
    "reward hacking": (("gold", "gold_reward", "judge", "win_rate"), "a gold reward or a judge"),
    "repetition, sameness": (("repetition",), "the repetition of the answers"),
    "KL": (("kl",), "a KL to a reference"),
    "value function": (("explained_variance",), "the explained variance of a value function"),
    "clipping": (("clip_fraction",), "the share of clipped tokens"),
    "sampler drift": (("mismatch_mean",), "the mismatch of sampler and trainer"),
}


def changes_of(training: Training) -> list[tuple[str, float, float, Interval | None]]:
    """(what, first quarter's mean, last quarter's, change with 95 % limits) of every curve that was logged."""
    look = Look(training.history, Limits(), 0.025)
    found = []
    for name, words in CURVES:
        if training.history.has(name):
            first, last = look.block(name, 0), look.block(name, -1)
            if first is not None and last is not None:
                found.append((words, first.mean, last.mean, look.change(name)))
    return found


def not_looked_for(training: Training) -> list[str]:
    """Alarms that could not be given, and what the run would have to log."""
    found = [
        f"{alarm}: {what} was not logged"
        for alarm, (names, what) in NEEDS.items()
        if not any(training.history.has(name) for name in names)
    ]
    if "rewards" not in training.history.singles:
        found.append("tests over prompts: responses were not recorded one by one")
    if "lengths" not in training.history.singles:
        found.append("what the reward pays for length: the tokens of each response were not counted")
    return found


def budget_sentence(account: KLBudget | None) -> str:
    """The KL account in one sentence."""
    if account is None:
        return "No account of the KL: fewer than 8 steps logged it beside a reward."
    said = (
        f"The policy is {account.spent:.3g} nats a response from its reference, {account.per_step:+.3g} a step lately"
    )
    if account.rate is not None:
        said += f"; a nat bought {account.rate:.3g} of reward"
    if account.budget is None:
        return f"{said}."
    said += f"; {account.spent / account.budget:.0%} of the {account.budget:g} allowed are spent"
    if account.gone_at is None:
        return f"{said}, and it is not growing."
    early = "" if account.gone_early is None else f" (by the 95 % interval not before {account.gone_early:.0f})"
    return f"{said}, at this pace all by step {account.gone_at:.0f}{early}."


def length_sentence(training: Training) -> str | None:
    """What length is paid, in one sentence."""
    if len(training.history) < 2 * BLOCKS:
        return None
    account = length_account(Look(training.history, Limits(), 0.025))
    if account is None:
        return None
    said = f"Length explains {account.variance:.0%} of the reward's variance among the answers of a step"
    if account.share is None:
        return f"{said}; the reward did not rise."
    return f"{said} and accounts for {account.share:.0%} of the {account.gained:.3g} gained."


def alarm_lines(found: list[Alarm]) -> list[str]:
    """One line an alarm."""
    return [
        f"{alarm.severity.upper():8} step {alarm.step:>5}  {alarm.name}{'' if alarm.standing else ' (over by now)'}: "
        f"{alarm.sentence}"
        for alarm in found
    ]


def text_report(training: Training, limits: Limits) -> str:
    """What the command prints."""
    history, summary = training.history, training.summary
    how = training.method.upper() or "training against a reward"
    lines = [f"{summary.path.name}: {how}, {len(history)} steps logged, {summary.state}"]
    if training.broken:
        lines.append(f"lines of its files left out because they cannot be read: {training.broken}")
    for words, first, last, change in changes_of(training):
        limit = "" if change is None else f", change {change.estimate:+.3g} [{change.low:+.3g}, {change.high:+.3g}]"
        lines.append(f"  {words:24} {first:10.4g} -> {last:<10.4g} (first and last quarter{limit})")
    lines.append(budget_sentence(training.kl_budget(limits.kl_budget)))
    lines += [sentence] if (sentence := length_sentence(training)) else []
    found = training.alarms(limits)
    lines.append("")
    if len(history) < 2 * BLOCKS:
        lines.append("Too early for alarms: they need 8 steps.")
    lines += alarm_lines(found) or (["No alarm."] if len(history) >= 2 * BLOCKS else [])
    missing = not_looked_for(training)
    if missing:
        lines += ["", "Could not be looked for:", *(f"  {one}" for one in missing)]
    return "\n".join(lines)
