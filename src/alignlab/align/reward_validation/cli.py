"""`alignlab reward validate`: what a reward model is worth on comparisons that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from alignlab.core.config import parse_cli, require
from alignlab.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignlab.align.preference_model import PreferenceModel
    from alignlab.align.reward.ensemble import RewardEnsemble
    from alignlab.align.reward.examples import RewardPair
    from alignlab.align.reward_validation.best_of_n import FloatArray
    from alignlab.align.reward_validation.overoptimisation import Overoptimisation
    from alignlab.align.reward_validation.robustness import Robustness
    from alignlab.lm.types import Prompt


@dataclass(frozen=True)
class ValidateCommand:
    """Measure a reward model on comparisons it has not seen."""

    model: Path
    """The directory of a reward model, or the run that trained one."""
    data: Path | None = None
    """JSON or JSONL of comparisons; none: those that the training kept back."""
    out: Path | None = None
    """Where to write the numbers as JSON."""
    html: Path | None = None
    """Where to write the report as a page."""
    most: int | None = None
    """Comparisons to read at most; none: all."""
    slice_by: tuple[str, ...] = ()
    """Further columns of the file to part the comparisons by."""
    robustness: bool = False
    """Edit the answers in ways that should not matter and score them again."""
    robustness_pairs: int = 200
    """Comparisons to edit at most."""
    paraphraser: str | None = None
    """A language model that paraphrases the answers as well."""
    overoptimise: bool = False
    """Best-of-n of a policy against this reward, with what a gold reward says; needs `policy` and `gold`."""
    policy: str | None = None
    """The language model whose answers are chosen among."""
    gold: Path | None = None
    """The reward model that stands for what is wanted."""
    samples: int = 64
    """Answers to each prompt, the largest n."""
    prompts: int = 64
    """Prompts of different dialogues to answer."""
    max_tokens: int = 64
    """Longest answer, in tokens."""
    rl_points: Path | None = None
    """Points of a policy in RL against this reward, as `PolicyProbe` writes them."""
    batch_size: int = 16
    """Responses per forward pass."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the trunk's weights."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    seed: int = 0
    """Of the answers."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "robustness_pairs", "samples", "prompts", "max_tokens"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "a positive whole number")
        require(self.most is None or self.most >= 1, "most", self.most, "none or a positive whole number")
        if self.overoptimise and (self.policy is None or self.gold is None):
            raise ConfigError("--overoptimise needs --policy MODEL and --gold RUN")
        if self.overoptimise and (self.samples < 4 or self.prompts < 2):
            raise ConfigError(f"{self.samples} samples of {self.prompts} prompts make no curve, 4 and 2 are the least")
        if not self.overoptimise and (self.policy or self.gold or self.rl_points):
            raise ConfigError("--policy, --gold and --rl-points belong to --overoptimise, which is not given")


def validate(argv: list[str]) -> int:
    """The `alignlab reward validate` command; returns its exit code."""
    command = parse_cli(ValidateCommand, argv, prog="alignlab reward validate", first="model")
    from alignlab.align.reward.measures import reward_margins
    from alignlab.align.reward.readers import read_pairs
    from alignlab.align.reward.saved import load_reward, plain_prompts
    from alignlab.align.reward_validation.report import decided, validate_margins
    from alignlab.align.reward_validation.slices import read_columns
    from alignlab.core.files import atomic_write
    from alignlab.core.run_creation import pretty_json

    model, _ = load_reward(command.model, dtype=command.dtype, device=command.device, batch_size=command.batch_size)
    data = command.data or command.model / "artifacts" / "heldout.jsonl"
    if command.data is None and not data.is_file():
        raise DataError(f"{command.model} kept no comparisons back, give a file of comparisons with --data")
    given = read_pairs(data, most=command.most)
    columns = read_columns(data, command.slice_by, most=command.most)
    kept = decided(given)
    if not kept:
        raise DataError(f"all {len(given)} comparisons of {data} are ties, which say nothing about right and wrong")
    asked = [given[i] for i in kept]
    pairs = plain_prompts(model, asked)
    report = validate_margins(
        str(command.model),
        reward_margins(model, pairs),
        pairs,
        columns={name: [values[i] for i in kept] for name, values in columns.items()},
        robustness=edited(command, model, pairs) if command.robustness else None,
        overoptimisation=optimised(command, model, asked) if command.overoptimise else None,
    )
    print(f"{report.measures.pairs} comparisons of {report.measures.dialogues} dialogues")
    print("\n".join(report.lines()))
    if command.out is not None:
        atomic_write(command.out, pretty_json(report.as_dict()))
    if command.html is not None:
        print(f"report  {report.page().save(command.html)}")
    return 0


def edited(
    command: ValidateCommand, model: PreferenceModel | RewardEnsemble, pairs: Sequence[RewardPair]
) -> Robustness:
    """Effects of the edits on some of the comparisons, evenly spread."""
    from alignlab.align.reward_validation.edits import EDITS, Edit, ModelParaphrase
    from alignlab.align.reward_validation.robustness import measure_robustness
    from alignlab.core.progress import Progress
    from alignlab.lm.language_model import load
    from alignlab.lm.samplers import sampler_of

    step = max(1, -(-len(pairs) // command.robustness_pairs))
    edits = list(EDITS)
    if command.paraphraser is not None:
        lm = load(command.paraphraser, dtype=command.dtype, device=command.device)
        paraphrase = ModelParaphrase(sampler_of(lm, batch_size=command.batch_size), seed=command.seed)
        edits.append(Edit(f"paraphrased by {lm.name}", "paraphrase", paraphrase))
    return measure_robustness(model, pairs[::step], edits=edits, progress=Progress())


def optimised(
    command: ValidateCommand, model: PreferenceModel | RewardEnsemble, pairs: Sequence[RewardPair]
) -> Overoptimisation:
    """The policy's best of n by this reward, as gold sees it."""
    from alignlab.align.reward.readers import as_text
    from alignlab.align.reward.saved import has_template, load_reward
    from alignlab.align.reward_validation.overoptimisation import measure_overoptimisation
    from alignlab.align.reward_validation.policy_probe import probe_curve
    from alignlab.align.reward_validation.sampled import distinct_prompts, sample_rewards, score_answers
    from alignlab.core.files import read_jsonl
    from alignlab.core.progress import Progress
    from alignlab.lm.language_model import load
    from alignlab.lm.samplers import sampler_of
    from alignlab.lm.types import SamplingParams

    assert command.policy is not None
    assert command.gold is not None
    gold, _ = load_reward(command.gold, dtype=command.dtype, device=command.device, batch_size=command.batch_size)
    lm = load(command.policy, dtype=command.dtype, device=command.device)
    prompts = distinct_prompts(pairs)[: command.prompts]

    def spelled(template: bool) -> list[Prompt]:
        return prompts if template else [as_text(prompt) for prompt in prompts]

    sampling = SamplingParams(max_tokens=command.max_tokens, n=command.samples, seed=command.seed)
    sampler = sampler_of(lm, batch_size=max(command.batch_size, 64))
    asked = spelled(lm.tokenizer.chat_template is not None)
    answers = sample_rewards(sampler, asked, {}, sampling, progress=Progress()).answers

    def rewards(judge: PreferenceModel | RewardEnsemble) -> FloatArray:
        return score_answers(judge, spelled(has_template(judge)), answers)

    rl = {}
    if command.rl_points is not None:
        rl["RL"] = ("this reward", probe_curve(read_jsonl(command.rl_points)))
    return measure_overoptimisation({"this reward": rewards(model)}, rewards(gold), rl)
