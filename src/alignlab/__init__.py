"""alignlab: an alignment laboratory in one package. Public names load when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "GPTConfig": "alignlab.lm.config",
    "GPTModel": "alignlab.lm.model",
    "MultiHeadAttention": "alignlab.lm.attention",
    "TransformerBlock": "alignlab.lm.block",
    "LanguageModel": "alignlab.lm.language_model",
    "load": "alignlab.lm.language_model",
    "SamplingParams": "alignlab.lm.types",
    "Completion": "alignlab.lm.types",
    "LocalSampler": "alignlab.lm.local",
    "Engine": "alignlab.lm.engine.engine",
    "EngineSampler": "alignlab.lm.engine.sampler",
    "Request": "alignlab.lm.engine.request",
    "RemoteSampler": "alignlab.lm.remote",
    "ScriptedSampler": "alignlab.lm.scripted",
    "Task": "alignlab.tasks.task",
    "Sample": "alignlab.tasks.task",
    "Score": "alignlab.tasks.task",
    "evaluate": "alignlab.tasks.evaluator",
    "Trainer": "alignlab.train.trainer",
    "TrainConfig": "alignlab.train.trainer",
    "Constitution": "alignlab.align.constitution",
    "ConstitutionalTrainer": "alignlab.align.critique",
    "PreferenceModel": "alignlab.align.preference_model",
    "PPOTrainer": "alignlab.align.ppo",
    "Run": "alignlab.core.runs",
}

__version__ = "0.1.0"
__all__ = [
    "Completion", "Constitution", "ConstitutionalTrainer", "Engine", "EngineSampler", "GPTConfig", "GPTModel",
    "LanguageModel", "LocalSampler", "MultiHeadAttention", "PPOTrainer", "PreferenceModel", "RemoteSampler", "Request",
    "Run", "Sample", "SamplingParams", "Score", "ScriptedSampler", "Task", "TrainConfig", "Trainer", "TransformerBlock",
    "evaluate", "load",
]  # fmt: skip

if TYPE_CHECKING:
    from alignlab.align.constitution import Constitution
    from alignlab.align.critique import ConstitutionalTrainer
    from alignlab.align.ppo import PPOTrainer
    from alignlab.align.preference_model import PreferenceModel
    from alignlab.core.runs import Run
    from alignlab.lm.attention import MultiHeadAttention
    from alignlab.lm.block import TransformerBlock
    from alignlab.lm.config import GPTConfig
    from alignlab.lm.engine.engine import Engine
    from alignlab.lm.engine.request import Request
    from alignlab.lm.engine.sampler import EngineSampler
    from alignlab.lm.language_model import LanguageModel, load
    from alignlab.lm.local import LocalSampler
    from alignlab.lm.model import GPTModel
    from alignlab.lm.remote import RemoteSampler
    from alignlab.lm.scripted import ScriptedSampler
    from alignlab.lm.types import Completion, SamplingParams
    from alignlab.tasks.evaluator import evaluate
    from alignlab.tasks.task import Sample, Score, Task
    from alignlab.train.trainer import TrainConfig, Trainer


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'alignlab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
