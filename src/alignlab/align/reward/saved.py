"""A reward model that the command line trained: its directory, and how to find and load it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignlab.align.preference_model import PreferenceModel
from alignlab.align.reward.encoder import TextEncoder, WordPieces, load_encoder, minilm
from alignlab.align.reward.ensemble import RewardEnsemble, deviation
from alignlab.align.reward.examples import RewardPair
from alignlab.align.reward.readers import as_text
from alignlab.core.errors import DataError, ModelError
from alignlab.core.files import atomic_write, json_rows, read_json
from alignlab.core.run_creation import pretty_json
from alignlab.lm.language_model import LanguageModel, load
from alignlab.lm.types import Prompt
from alignlab.tasks.pair_rows import messages_in

FILE = "reward.json"
FORMAT = "alignlab-reward-1"


def load_base(spec: str, *, dtype: str = "auto", device: str = "auto") -> LanguageModel | TextEncoder:
    """The trunk that `spec` names: `minilm`, the directory of a BERT encoder, or what `alignlab.lm` knows."""
    if spec == "minilm":
        return minilm(device=device)
    settings = Path(spec).expanduser() / "config.json"
    if settings.is_file() and read_json(settings).get("model_type") == "bert":
        return load_encoder(settings.parent, device=device)
    return load(spec, dtype=dtype, device=device)


def save_reward(model: PreferenceModel | RewardEnsemble, directory: Path, info: dict[str, Any]) -> None:
    """Write the model and what is needed to load it; `info` holds at least `base`."""
    directory.mkdir(parents=True, exist_ok=True)
    model.save(directory)
    kind = "ensemble" if isinstance(model, RewardEnsemble) else "single"
    atomic_write(directory / FILE, pretty_json({"format": FORMAT, "kind": kind, **info}))


def load_reward(
    path: str | Path, *, dtype: str = "auto", device: str = "auto", batch_size: int | None = None
) -> tuple[PreferenceModel | RewardEnsemble, dict[str, Any]]:
    """The reward model in `path` (its directory, or a run that trained one) and what was recorded about it.

    Raises ModelError where there is none, or its base model cannot be found or is another.
    """
    path = Path(path).expanduser()
    directory = next((folder for folder in (path, path / "model") if (folder / FILE).is_file()), None)
    if directory is None:
        raise ModelError(f"{path} holds no reward model (no {FILE}); `alignlab reward train` makes it or goes on")
    info = read_json(directory / FILE)
    if not isinstance(info, dict) or info.get("format") != FORMAT or not isinstance(info.get("base"), str):
        raise ModelError(f"{directory / FILE} is not the record of a reward model of this version ({FORMAT})")
    base = load_base(info["base"], dtype=dtype, device=device)
    model: PreferenceModel | RewardEnsemble
    if info.get("kind") == "ensemble":
        model = RewardEnsemble.load(directory, base)
    else:
        model = PreferenceModel.load(directory, base)
    for single in model.models if isinstance(model, RewardEnsemble) else [model]:
        single.batch_size = batch_size or single.batch_size
    return model, info


def plain_prompts(model: PreferenceModel | RewardEnsemble, pairs: Sequence[RewardPair]) -> list[RewardPair]:
    """The pairs with prompts that the model's tokenizer can spell: without a chat template, dialogues become text."""
    if has_template(model):
        return list(pairs)
    return [replace(pair, prompt=as_text(pair.prompt)) for pair in pairs]


def has_template(model: PreferenceModel | RewardEnsemble) -> bool:
    """Whether prompts may be messages."""
    single = model.models[0] if isinstance(model, RewardEnsemble) else model
    return isinstance(single.tokenizer, WordPieces) or getattr(single.tokenizer, "chat_template", None) is not None


def read_answers(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file that each have a prompt (text or messages) and a response; DataError names a line that
    has not."""
    rows = []
    for where, row in json_rows(path):
        try:
            if not isinstance(row.get("response"), str):
                raise DataError("response is missing or no text")
            if not isinstance(row.get("prompt"), str):
                messages_in(row.get("prompt"), "prompt")
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        rows.append(row)
    if not rows:
        raise DataError(f"{path} has no answers")
    return rows


def scored(model: RewardEnsemble, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their `reward`, and `uncertainty` where the model has several members."""
    prompts: list[Prompt] = [row["prompt"] for row in rows]
    if not has_template(model):
        prompts = [as_text(prompt) for prompt in prompts]
    members = model.member_scores(prompts, [row["response"] for row in rows])
    rewards, spread = model.combine(members).tolist(), deviation(members).tolist()
    found = [{**row, "reward": reward} for row, reward in zip(rows, rewards, strict=True)]
    if model.members > 1:
        found = [{**row, "uncertainty": value} for row, value in zip(found, spread, strict=True)]
    return found
