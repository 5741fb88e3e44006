"""What a run of `alignlab rlhf` recorded, for its report: numbers and the sentences that follow from them alone."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from alignlab.align.diagnostics.alarms import Alarm, alarms
from alignlab.align.diagnostics.reading import read_training
from alignlab.align.report_findings import read_rows
from alignlab.core.errors import DataError, RunError
from alignlab.core.run_record import RunRecord, StageRecord
from alignlab.stats.interval import Interval

MODELS = {"base": "the base", "sft": "SFT", "rl": "the policy"}
"""Measured models in prose."""
STAGES = {
    "supervised": "supervised fine-tuning",
    "reward-model": "reward model",
    "judge-model": "held-out judge",
    "reinforcement": "reinforcement",
    "measures": "measures",
    "export": "export",
}


class Account:
    """The recorded numbers of one run, finished or not."""

    def __init__(self, run: RunRecord) -> None:
        """RunError when `run` is no run of `alignlab rlhf`."""
        if run.name != "rlhf" or "method" not in run.config_dict:
            raise RunError(f"the run {run.path} is no run of `alignlab rlhf`, this report can be made only of one")
        self.run, self.config = run, run.config_dict
        self.method = str(self.config["method"])
        self.stages: dict[str, StageRecord] = run.stages()

    @property
    def finished(self) -> bool:
        """Whether the last stage is recorded."""
        return "export" in self.stages

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of all finished stages."""
        return sum(record.seconds for record in self.stages.values())

    def output(self, stage: str) -> dict[str, Any]:
        """What a stage recorded; empty where it has not finished."""
        return self.stages[stage].output if stage in self.stages else {}

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """The metrics of every rollout batch, without the method's name before theirs."""
        prefix, rows = f"{self.method}/", []
        for row in self.run.metrics():
            own = {name.removeprefix(prefix): float(value) for name, value in row.items() if name.startswith(prefix)}
            if own:
                rows.append({"step": float(row["step"]), **own})
        return rows

    @property
    def measures(self) -> dict[str, Any]:
        """The stage `measures`."""
        return self.output("measures")

    @property
    def models(self) -> list[str]:
        """The measured models in the order in which they came to be."""
        return [name for name in MODELS if f"answers-{name}" in self.stages]

    @property
    def before(self) -> str:
        """The model that the policy started from."""
        return "sft" if "sft" in self.models else "base"

    def difference(self, quantity: str, earlier: str) -> Mapping[str, Any] | None:
        """The policy less an earlier model."""
        found = self.measures.get("differences", [])
        return next((d for d in found if (d["quantity"], d["earlier"]) == (quantity, earlier)), None)

    @property
    def quantities(self) -> list[str]:
        """What was measured: rewards, and gold."""
        return list(self.measures.get("quantities", {}))

    def mean(self, quantity: str, model: str) -> Interval:
        """A model's mean."""
        return Interval.from_dict(self.measures["quantities"][quantity][model])

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Prompts with every model's answer and its scores."""
        return read_rows(self.run.artifacts / "measured.jsonl", ("prompt", "answers", "scores"))

    def alarms(self) -> list[Alarm]:
        """What looks wrong in the training."""
        if not self.history:
            return []
        if not any("entropy" in row for row in self.history):  # every batch was skipped
            return []
        training = read_training(self.run.path, self.method)
        # By what the run recorded and not by its state: it is still open while its report is written.
        return alarms(training.history, limits=training.limits(), over=self.finished)

    # Sentences

    def verdicts(self) -> list[str]:
        """What the comparisons say, in words that follow from their verdicts alone."""
        told = []
        for found in self.measures.get("differences", []):
            if found["quantity"] == "wins":
                continue
            step, earlier = Interval.from_dict(found["difference"]), MODELS[found["earlier"]]
            what = {"reward": "the reward", "gold": "the gold reward"}.get(found["quantity"], found["quantity"])
            if found["verdict"] == "tied":
                told.append(f"On {what} the policy is **tied** with {earlier}: {signed(step)}.")
            else:
                told.append(f"On {what} the policy is **{found['verdict']}** than {earlier}: {signed(step)}.")
        for earlier, wins in self.measures.get("wins", {}).items():
            told.append(self.win_sentence(earlier, wins))
        return told

    def win_sentence(self, earlier: str, wins: Mapping[str, Any]) -> str:
        """How often the policy wins, and how far that can be trusted."""
        if "failed" in wins:
            return f"No win rate against {MODELS[earlier]}: {wins['failed']}."
        raw, verdict = Interval.from_dict(wins["raw"]), self.difference("wins", earlier)
        word = (
            ""
            if verdict is None
            else {"better": "**more often**", "worse": "**less often**"}.get(
                str(verdict["verdict"]), "**as often as not** (tied)"
            )
        )
        text = f"The judge ({wins['judge']}) prefers the policy to {MODELS[earlier]} {word}: {share(raw)}"
        if wins["corrected"] is not None:
            return f"{text}; behind the judge's own error {share(Interval.from_dict(wins['corrected']))}."
        labels = wins.get("labels")
        if labels is None:
            return f"{text}; its own error is not known, so this is the judge's opinion and no more."
        accuracy = Interval.from_dict(labels["accuracy"])
        return f"{text}; it agrees with people on {share(accuracy)}, no better than chance: **this says nothing**."

    def warnings(self) -> list[str]:
        """What a reader must know before the numbers."""
        told = []
        skipped, steps = self.output("reinforcement").get("skipped", 0), len(self.history)
        if skipped:
            told.append(f"{skipped} of {steps} rollout batches had equal rewards throughout and taught nothing.")
        reward, gold = (self.difference(name, self.before) for name in ("reward", "gold"))
        if reward is not None and gold is not None:
            up, down = reward["verdict"] == "better", gold["verdict"] == "worse"
            if up and down:
                told.append("**The reward rose and the gold reward fell: the policy exploits the reward.**")
            elif up and gold["verdict"] == "tied":
                told.append("The reward rose, and the gold reward did not follow (tied).")
        made = self.output("reward-model").get("measures")
        if made is not None:
            accuracy = Interval.from_dict(made["accuracy"])
            if accuracy.low <= 0.5:
                told.append(
                    f"**The reward model is not shown to be better than guessing** on comparisons kept back: "
                    f"{share(accuracy)}; climbing it says little."
                )
        return told


def signed(interval: Interval) -> str:
    """A difference with its interval and n."""
    shown = f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}], n = {interval.n}"
    return shown.replace("-", "−")


def plain(interval: Interval) -> str:
    """An estimate with its interval."""
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]".replace("-", "−")


def share(interval: Interval) -> str:
    """A share in percent with its interval and n."""
    low, high = (100 * max(0.0, interval.low), 100 * min(1.0, interval.high))
    return f"{100 * interval.estimate:.1f} % [{low:.1f}, {high:.1f}], n = {interval.n}"


def open_account(run: RunRecord) -> Account:
    """The account of a run. Raises DataError where what was recorded is damaged."""
    try:
        return Account(run)
    except (KeyError, TypeError) as error:
        raise DataError(f"the run {run.path} is damaged: {error!r}") from error
