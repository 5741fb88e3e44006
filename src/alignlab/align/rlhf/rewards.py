"""What a reward on the command line stands for: a model, a function of the user's, a task's scorer, a web address."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from alignlab.align.objectives.combining import ObjectivesConfig, combine
from alignlab.align.rl.endpoint_reward import EndpointReward
from alignlab.align.rl.rewards import Reward, TaskReward, call_of
from alignlab.align.rlhf.sources import Asked
from alignlab.core.config import unknown_name
from alignlab.core.errors import AlignlabError, ConfigError
from alignlab.tasks.builtin import TaskSettings, make_task

if TYPE_CHECKING:
    from alignlab.align.rlhf.config import CombineSettings, TaskSettingsOfReward

FORMS = (
    "the directory of a reward model or the run that trained one, FILE.py:NAME, MODULE:NAME, task:NAME, "
    "or a web address"
)
_FILE = re.compile(r"(?P<path>.+\.py):(?P<name>[A-Za-z_]\w*)")
_NAMED = re.compile(r"(?P<name>[A-Za-z_]\w*)=")
_MODULE = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class RewardSpec:
    """One reward as it was named, with its weight."""

    spec: str
    weight: float = 1.0
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> RewardSpec:
        """`[NAME=][WEIGHT*]REWARD`. Raises ConfigError for a weight that is no finite number."""
        named = _NAMED.match(text)
        name, rest = ("", text) if named is None else (named["name"], text[named.end() :])
        weight, star, spec = rest.rpartition("*")
        try:
            value = float(weight) if star else 1.0
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not spec.strip():
            raise ConfigError(f"reward is {text!r}, allowed: [NAME=][WEIGHT*]REWARD, such as 0.5*rewards.py:brief")
        return cls(spec.strip(), value, name)

    @property
    def file(self) -> Path | None:
        """The user's own Python file behind it, if it is one."""
        found = _FILE.fullmatch(self.spec)
        return None if found is None else Path(found["path"])

    @property
    def label(self) -> str:
        """A short name for metrics and reports."""
        if self.name:
            return self.name
        if self.spec.startswith(("http://", "https://")):
            return self.spec.split("//", 1)[1].split("/", 1)[0]
        return self.spec.rpartition(":")[2] if ":" in self.spec else Path(self.spec).name


def open_reward(spec: str, task: TaskSettingsOfReward, *, dtype: str, device: str, seed: int) -> Reward:
    """The reward that `spec` names; nothing is sent to an address yet.

    Raises:
        ConfigError: it names nothing that can be a reward.
        ModelError: the directory holds no reward model, or its base cannot be found.
        DataError: the task's data cannot be read.
    """
    if spec.startswith(("http://", "https://")):
        return EndpointReward(spec)
    if spec.startswith("task:"):
        return task_reward(spec.removeprefix("task:"), task, seed)
    if (found := _FILE.fullmatch(spec)) is not None:
        return named_in(_file_module(Path(found["path"])), found["name"], spec)
    if Path(spec).expanduser().exists():
        from alignlab.align.reward.saved import load_reward

        return load_reward(spec, dtype=dtype, device=device)[0]
    if (found := _MODULE.fullmatch(spec)) is not None:
        return named_in(_module(found["module"], spec), found["name"], spec)
    raise ConfigError(f"reward is {spec!r}, which is no file or directory here; allowed: {FORMS}")


def task_reward(name: str, settings: TaskSettingsOfReward, seed: int) -> TaskReward:
    """A built-in task's scorer; an answer that cannot be scored is worth the worst score there is."""
    task = make_task(name, TaskSettings(
        data=settings.data, shots=settings.shots, limit=settings.limit, chat=settings.chat, seed=seed
    ))  # fmt: skip
    low, high = task.score_range or (None, None)
    worst = low if task.higher_is_better else None if high is None else -high
    return TaskReward(task, unscorable=worst)


def named_in(module: ModuleType, name: str, spec: str) -> Reward:
    """The function, object or class (made without arguments) called `name` that can score answers."""
    if not hasattr(module, name):
        known = [key for key in vars(module) if not key.startswith("_")]
        raise ConfigError(f"reward {spec}: " + unknown_name(f"name {name!r} there", name, known))
    found = getattr(module, name)
    if inspect.isclass(found):
        try:
            found = found()
        except Exception as error:
            raise ConfigError(
                f"reward {spec}: the class cannot be made without arguments ({type(error).__name__}: {error})"
            ) from error
    try:
        call = call_of(found)
    except ConfigError as error:
        raise ConfigError(f"reward {spec}: {error}") from None
    try:
        inspect.signature(call).bind([], [])
    except TypeError:
        raise ConfigError(
            f"reward {spec} takes {inspect.signature(call)}, right is a function of (prompts, responses)"
        ) from None
    except ValueError:  # a builtin does not say what it takes
        pass
    reward: Reward = found
    return reward


def _file_module(path: Path) -> ModuleType:
    path = path.expanduser()
    if not path.is_file():
        raise ConfigError(f"reward names the file {path}, which is not there")
    # One module a file, under a name of its own, so that dataclasses and the like find it.
    name = f"alignlab_reward_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    made = importlib.util.spec_from_file_location(name, path)
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    sys.modules[name] = module
    try:
        made.loader.exec_module(module)
    except AlignlabError:
        raise
    except Exception as error:
        raise ConfigError(f"reward file {path} cannot be run: {type(error).__name__}: {error}") from error
    return module


def _module(name: str, spec: str) -> ModuleType:
    if os.getcwd() not in sys.path:  # as `python -m` does: the user's module lies where the command was typed
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except AlignlabError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"reward is {spec!r}, but there is no module {error.name!r} here; allowed: {FORMS}"
        ) from error
    except Exception as error:
        raise ConfigError(f"reward module {name} cannot be imported: {type(error).__name__}: {error}") from error


def named_parts(specs: Sequence[str]) -> dict[str, RewardSpec]:
    """The rewards that are maximised, by name; equal names are told apart by a stroke."""
    found: dict[str, RewardSpec] = {}
    for spec in map(RewardSpec.parse, specs):
        name = spec.label
        while name in found:
            name += "'"
        found[name] = spec
    return found


def joined(rewards: Mapping[str, tuple[Reward, float]], config: CombineSettings, time_limit: float) -> Reward:
    """One reward as it is, several put together as `config` says, weighted as they were named.

    Raises ConfigError where the config names a reward that is not there, or leaves one without a place.
    """
    weights = {name: weight for name, (_, weight) in rewards.items()}
    parts = {name: reward for name, (reward, _) in rewards.items()}
    weighted = config.method == "weighted"
    if weighted and config.normalise == "none" and list(weights.values()) == [1.0]:
        return next(iter(parts.values()))
    if not weighted and set(weights.values()) != {1.0}:
        raise ConfigError(f"the rewards have weights {weights}, which only combine.method weighted has a use for")
    own = ObjectivesConfig(**vars(config), weights=weights if weighted else {}, time_limit=time_limit)
    return combine(parts, own)


def prompts_of(reward: Reward) -> Asked:
    """The prompts that a reward brings itself (a task's): attributes `prompts` and `heldout_prompts`."""
    return Asked(list(getattr(reward, "prompts", None) or []), list(getattr(reward, "heldout_prompts", None) or []))
