"""What a log belongs to: task, dataset, solver, scorer and model, each as a short digest that can be compared."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from alignlab.core.errors import DataError
from alignlab.lm.types import Sampler
from alignlab.tasks.task import Task


def describe(part: object) -> Any:
    """JSON description of a solver, a scorer or one of their settings, equal in every process.

    Dataclasses give their fields, functions their name and what they closed over, everything else its type. An object
    that carries its own identity (a judge model's weights, say) can have a string attribute `fingerprint`.
    """
    own = getattr(part, "fingerprint", None)
    if isinstance(own, str):
        return own
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, Mapping):
        return {str(key): describe(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [describe(value) for value in part]
    if isinstance(part, set | frozenset):
        return sorted((describe(value) for value in part), key=str)
    if isinstance(part, functools.partial):
        return {"partial": describe(part.func), "args": describe(part.args), "keywords": describe(part.keywords)}
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {f.name: describe(getattr(part, f.name)) for f in dataclasses.fields(part)}
        return {"type": _name(type(part)), **fields}
    if callable(part) and hasattr(part, "__qualname__"):
        return _describe_function(part)
    return _name(type(part))


def _describe_function(function: Callable[..., Any]) -> Any:
    cells = getattr(function, "__closure__", None) or ()
    closed: dict[str, Any] = {}
    for name, cell in zip(getattr(getattr(function, "__code__", None), "co_freevars", ()), cells, strict=False):
        content = cell.cell_contents
        closed[name] = "itself" if content is function else describe(content)
    name = f"{function.__module__}.{function.__qualname__}"
    return {"function": name, **closed} if closed else name


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def dataset_digest(task: Task) -> str:
    """Digest of ids, prompts, targets, clusters and metadata in order; DataError for metadata that JSON cannot hold."""
    digest = hashlib.sha256()
    for sample in task.dataset:
        row = [sample.id, sample.prompt, sample.target, sample.cluster, dict(sample.metadata)]
        try:
            digest.update(json.dumps(row, sort_keys=True).encode())
        except (TypeError, ValueError) as error:
            raise DataError(f"the metadata of sample {sample.id!r} must be JSON values: {error}") from error
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def header(task: Task, sampler: Sampler, model: str | None) -> dict[str, Any]:
    """The identity written beside a log; two logs may be continued or compared only where the parts agree."""
    return {
        "format": 1,
        "task": task.name,
        "model": model if model is not None else model_name(sampler),
        "n": len(task.dataset),
        "dataset": dataset_digest(task),
        "solver": describe(task.solver),
        "scorer": describe(task.scorer),
        "score_range": list(task.score_range) if task.score_range is not None else None,
        "higher_is_better": task.higher_is_better,
    }


def model_name(sampler: Sampler) -> str:
    """What a sampler calls itself: its `fingerprint`, `name` or `model`, its language model's name, or its type."""
    for owner in (sampler, getattr(sampler, "lm", None)):
        for attribute in ("fingerprint", "name", "model"):
            value = getattr(owner, attribute, None)
            if isinstance(value, str) and value:
                return value
    return type(sampler).__name__
