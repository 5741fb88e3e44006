"""The models that Chat offers: those named or registered, what runs have made, and how each is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.app.context import AppContext
from alignlab.core.errors import AlignlabError, ModelError, SamplerError
from alignlab.lm.types import SamplingParams

if TYPE_CHECKING:
    from alignlab.lm.language_model import LanguageModel
    from alignlab.lm.local import LocalSampler

MOST_RUNS = 50
"""Newest runs whose models are offered."""
_ADAPTER_FILE = "adapter_config.json"


@dataclass(frozen=True)
class Offer:
    """A model to talk to."""

    spec: str
    """What it is loaded by: a name, or the path of a file, a model, an adapter or a run."""
    label: str
    """What people read, also beside what they said of its answers; each label once."""
    base: str | None = None
    """The spec of the model that it was made from, where that is known."""


def offers(context: AppContext) -> list[Offer]:
    """What is offered: with `--model` those models, else the registered ones, newest first, and what runs made.

    Raises ModelError where the registry is damaged.
    """
    if context.models is not None:
        return _labelled([Offer(spec, _short(spec), _base_of(spec)) for spec in context.models])
    return _labelled(list(_found(context)))


def _found(context: AppContext) -> Iterator[Offer]:
    from alignlab.lm import catalogue, registry

    known: set[Path] = set()
    own = list(reversed(registry.registered()))
    for model in own:
        known.add(model.path)
        base = model.info.get("base")
        yield Offer(model.name, model.name, base if isinstance(base, str) else None)
    names = {model.name for model in own}
    for name in catalogue.CATALOGUE:
        if name not in names and catalogue.locate(name) is not None:
            yield Offer(name, name)
    for run in _newest_runs(context.runs_dir):
        for path in _made(run):
            if path.resolve() not in known:
                yield Offer(str(path), f"{run.name} · {path.name}", _base_of(str(path)))


def _newest_runs(root: Path) -> list[Path]:
    from alignlab.core.run_status import list_runs

    return [run.path for run in list_runs(root)[: -MOST_RUNS - 1 : -1]]


def _made(run: Path) -> list[Path]:
    """The model of a run, then its adapters, the last one first."""
    found = [run / "model"] if (run / "model" / "config.json").is_file() else []
    files = sorted(run.glob(f"artifacts/*/{_ADAPTER_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
    return found + [file.parent for file in files]


def _base_of(spec: str) -> str | None:
    """The model that a run, its model or its adapter was made from, as far as its files tell."""
    from alignlab.core.files import read_json
    from alignlab.core.runs import Run

    path = Path(spec).expanduser()
    try:
        if (path / _ADAPTER_FILE).is_file():
            base = read_json(path / _ADAPTER_FILE).get("base_model_name_or_path")
        else:
            run = next((one for one in (path, path.parent) if (one / "status.json").is_file()), None)
            base = None if run is None else Run.read(run).config_dict.get("model")
    except (AlignlabError, AttributeError, OSError):
        return None
    return base if isinstance(base, str) else None


def _short(spec: str, parts: int = 1) -> str:
    """A path by its last part or parts, a name as it is."""
    path = Path(spec).expanduser()
    return "/".join(path.absolute().parts[-parts:]) if path.exists() else spec


def _labelled(found: Sequence[Offer]) -> list[Offer]:
    """Each once; where several have one label, they are called by more of their paths, or by all."""
    once = list({offer.spec: offer for offer in found}.values())
    for longer in (lambda spec: _short(spec, 2), str):
        labels = [offer.label for offer in once]
        once = [one if labels.count(one.label) == 1 else replace(one, label=longer(one.spec)) for one in once]
    return once


def first_choice(offered: Sequence[Offer]) -> tuple[str | None, str | None]:
    """What stands left and right at first: the base of the newest tuned model, and that model.

    With `--model` twice these are the two in their order; one alone stands on both sides.
    """
    specs = [offer.spec for offer in offered]
    tuned = next((offer for offer in offered if offer.base in specs and offer.base != offer.spec), None)
    if tuned is not None:
        return tuned.base, tuned.spec
    if not specs:
        return None, None
    return specs[0], specs[min(1, len(specs) - 1)]


def load_sampler(spec: str) -> LocalSampler:
    """The model behind a spec, ready to answer. Nothing is fetched from anywhere.

    Raises ModelError where there is none, or it cannot be loaded.
    """
    from alignlab.lm.local import LocalSampler

    return LocalSampler(_load(spec))


def ready_sampler(spec: str) -> LocalSampler:
    """`load_sampler`, and a few tokens drawn: what is compiled at a model's first answer is compiled then."""
    sampler = load_sampler(spec)
    with suppress(SamplerError):  # whoever talks to it is told
        for _ in sampler.stream("Hello", SamplingParams(max_tokens=3)):
            pass
    return sampler


def _load(spec: str) -> LanguageModel:
    from alignlab.lm.language_model import load

    path = Path(spec).expanduser()
    if (path / "status.json").is_file() and not (path / "config.json").is_file():
        made = _made(path)
        if made:  # a run from elsewhere may be registered nowhere
            path, spec = made[0], str(made[0])
    if not (path / _ADAPTER_FILE).is_file():
        return load(spec, download=False)
    from alignlab.lm.lora_files import load_adapter

    base = _base_of(spec)
    if base is None:
        raise ModelError(f"the adapter {path} does not say which model it belongs to")
    lm = load(base, download=False)
    load_adapter(lm.model, path)
    return lm
