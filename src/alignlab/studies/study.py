"""What a study is, and which there are.

A study is a frozen dataclass: class attributes `name`, `question`, `claim` and `source`, its options as fields, and one
method `run`. It is a file that reads from the question to the verdict.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args

from alignlab.core.config import unknown_name
from alignlab.core.errors import ConfigError

if TYPE_CHECKING:
    from alignlab.core.progress import Progress
    from alignlab.studies.findings import Findings

Scale = Literal["smoke", "cpu", "gpu"]
"""`smoke` runs in seconds and shows that the study works; `cpu` takes minutes to an hour; `gpu` is the full one."""
SCALES: tuple[str, ...] = get_args(Scale)

Stage = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]
"""`stage(name, work)` gives `work()`, or what it gave before where a run recorded it: see `Run.stage`."""


def at_once(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A `Stage` that records nothing."""
    return work()


class Study(Protocol):
    """A question, what a paper claims about it, and the experiment that tests the claim.

    What it may have besides, all of which is locked before the experiment begins: `expectations(scale)`, its claims by
    name; `plan(scale)`, its sizes as plain values; `sources`, the modules that it is made of.
    """

    name: ClassVar[str]
    """Its name on the command line."""
    question: ClassVar[str]
    """What it asks, one sentence."""
    claim: ClassVar[str]
    """What the source says."""
    source: ClassVar[str]
    """The paper or papers."""

    def check(self, scale: Scale) -> None:
        """Raise what is wrong with the options before anything is computed or written."""

    def run(self, scale: Scale, seed: int, progress: Progress, *, stage: Stage = at_once) -> Findings:
        """Do the experiment. Long parts go through `stage`, so that an interrupted run goes on where it stopped."""


_PLACES: dict[str, str] = {
    "autoregressive-families": "alignlab.studies.autoregressive_families:AutoregressiveFamilies",
    "alignment-and-calibration": "alignlab.studies.alignment_and_calibration:AlignmentAndCalibration",
    "reward-overoptimisation": "alignlab.studies.reward_overoptimisation:RewardOveroptimisation",
}
_ADDED: dict[str, type] = {}
_RESERVED = ("scale", "seed", "run")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def study_names() -> list[str]:
    """The names of all studies, sorted."""
    return sorted({*_PLACES, *_ADDED})


def find_study(name: str) -> type[Study]:
    """The class of the study `name`; ConfigError where there is none."""
    if name in _ADDED:
        return _ADDED[name]
    if name not in _PLACES:
        raise ConfigError(unknown_name(f"study {name!r}", name, study_names()))
    module, _, attribute = _PLACES[name].partition(":")
    found: type[Study] = getattr(importlib.import_module(module), attribute)
    return found


def register(study: type) -> type:
    """Make a study of your own known by its name; usable as a class decorator.

    Raises ConfigError for a name that is taken or not of lower-case words with hyphens, a missing question, claim or
    source, or a class that is no frozen dataclass with defaults for all options.
    """
    where = f"the study {study.__name__}"
    for attribute in ("name", "question", "claim", "source"):
        text = getattr(study, attribute, None)
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{where} has no {attribute}; name, question, claim and source are class attributes")
    name: str = study.name  # type: ignore[attr-defined]
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where} is named {name!r}, allowed: lower-case words joined by hyphens")
    if name in study_names():
        raise ConfigError(f"{where} is named {name!r}, which another study has; choose another name")
    if not dataclasses.is_dataclass(study) or not study.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(f"{where} is not a frozen dataclass; its fields are the options")
    for field in dataclasses.fields(study):
        if field.name in _RESERVED:
            raise ConfigError(f"{where} has the option {field.name!r}, which every study has already")
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where} has the option {field.name!r} without a default; every option needs one")
    for method in ("run", "check"):
        if not callable(getattr(study, method, None)):
            raise ConfigError(f"{where} has no method {method!r}")
    _ADDED[name] = study
    return study
