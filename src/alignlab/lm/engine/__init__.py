"""The inference engine: continuous batching over a paged cache. Read `engine.py` first; docs/engine.md explains it."""

from __future__ import annotations

from alignlab.lm.engine.engine import Engine, EngineStats
from alignlab.lm.engine.options import EngineOptions
from alignlab.lm.engine.request import Event, Handle, Request
from alignlab.lm.engine.sampler import EngineSampler

__all__ = ["Engine", "EngineOptions", "EngineSampler", "EngineStats", "Event", "Handle", "Request"]
