"""`CachedSampler`: answers and likelihoods that a model has given before come from a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from alignlab.core.errors import DataError
from alignlab.core.files import writing
from alignlab.lm.types import Completion, GenerationError, Prompt, Sampler, SamplingParams
from alignlab.tasks.fingerprint import describe
from alignlab.tasks.model_identity import model_identity

if TYPE_CHECKING:
    from torch import Tensor

_APPLICATION = 0x616C_6362  # "alcb": tells our file from any other SQLite database
_PATIENCE_SECONDS = 120.0
_AT_ONCE = 500


class CachedSampler:
    """A `Sampler` that asks `sampler` only what the file `path` does not hold.

    The key of an answer is the model's identity (`model_identity`; `identity` overrides it), the prompt, all of
    `SamplingParams`, and how many times the same prompt stood before it in the call, since each occurrence has a
    random stream of its own. So two models never mix, and a second seed is a second answer. Likelihoods are kept per
    prompt and continuation, bit by bit.

    What is written is committed at once: a crash loses at most the call in flight. Several threads and processes may
    share a file; of two that compute one answer, both return the one that was first. A call that fails in parts keeps
    the answers that it has got. `hits` and `misses` count answers and scored pairs.

    Raises:
        DataError: `path` is no such file, or is damaged.
        SamplerError: the sampler cannot say which model it is.
    """

    def __init__(self, sampler: Sampler, path: str | Path, *, identity: str | None = None) -> None:
        self._sampler, self.path = sampler, Path(path)
        self._identity = identity or model_identity(sampler)
        self.hits = self.misses = 0
        self._lock = threading.RLock()
        self._connection = _open(self.path)

    def __getattr__(self, name: str) -> Any:
        if name == "_sampler":  # before __init__, for instance in copy
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back; closing twice is harmless."""
        with self._lock:
            self._connection.close()

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        """`sampling.n` completions for each prompt, as the sampler would give them to this very call."""
        settings = describe(sampling)
        keys, seen = [], dict[str, int]()
        for prompt in prompts:
            text = json.dumps(prompt, sort_keys=True)
            keys.append(self._key("generate", text, settings, seen.get(text, 0)))
            seen[text] = seen.get(text, 0) + 1
        known = self._read(keys)
        absent = {json.dumps(prompts[i], sort_keys=True) for i, key in enumerate(keys) if key not in known}
        # All occurrences of a prompt go together: the random stream of one depends on those before it.
        asked = [i for i, prompt in enumerate(prompts) if json.dumps(prompt, sort_keys=True) in absent]
        self._count(len(prompts) - len(asked), len(asked))
        if asked:
            try:
                fresh = self._sampler.generate([prompts[i] for i in asked], sampling)
            except GenerationError as error:
                raise self._kept(error, asked, keys, known, sampling.n) from error
            known |= self._write({keys[i]: _packed(fresh[k * sampling.n :][: sampling.n]) for k, i in enumerate(asked)})
        return [one for key in keys for one in self._unpacked(known[key])]

    def logprobs(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Tensor]:
        """For each pair the log-probabilities of the completion's tokens, float32."""
        import torch

        if len(prompts) != len(completions):
            return self._sampler.logprobs(prompts, completions)  # whose error says it best
        keys = [
            self._key("logprobs", json.dumps(prompt, sort_keys=True), completion, 0)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        known = self._read(keys)
        asked = list({key: i for i, key in reversed(list(enumerate(keys))) if key not in known}.values())[::-1]
        self._count(len(keys) - len(asked), len(asked))
        if asked:
            fresh = self._sampler.logprobs([prompts[i] for i in asked], [completions[i] for i in asked])
            rows = {keys[i]: one.detach().float().cpu().numpy().tobytes() for i, one in zip(asked, fresh, strict=True)}
            known |= self._write(rows)
        return [
            torch.frombuffer(bytearray(known[key]), dtype=torch.float32) if known[key] else torch.zeros(0)
            for key in keys
        ]

    def _key(self, kind: str, prompt: str, settings: Any, occurrence: int) -> str:
        said = json.dumps([kind, self._identity, prompt, settings, occurrence], sort_keys=True)
        return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()

    def _count(self, hits: int, misses: int) -> None:
        with self._lock:
            self.hits += hits
            self.misses += misses

    def _kept(
        self, error: GenerationError, asked: Sequence[int], keys: Sequence[str], known: dict[str, bytes], n: int
    ) -> GenerationError:
        """The error of a call that failed in parts, told of the whole call; what succeeded is written."""
        rows = {}
        for k, i in enumerate(asked):
            own = error.completions[k * n : (k + 1) * n]
            if len(own) == n and all(one is not None for one in own):
                rows[keys[i]] = _packed([one for one in own if one is not None])
        known |= self._write(rows)
        kept: list[Completion | None] = []
        for key in keys:
            kept += self._unpacked(known[key]) if key in known else [None] * n
        places = {k * n + answer: asked[k] * n + answer for k in range(len(asked)) for answer in range(n)}
        return GenerationError({places[at]: why for at, why in error.errors.items()}, kept, n=n)

    def _unpacked(self, packed: bytes) -> list[Completion]:
        try:
            rows = json.loads(packed)
            return [
                Completion(**{**row, "tokens": tuple(row["tokens"]), "logprobs": tuple(row["logprobs"])})
                for row in rows
            ]
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{self.path} holds a damaged answer ({error}); delete the file") from error

    def _read(self, keys: Sequence[str]) -> dict[str, bytes]:
        wanted, found = list(dict.fromkeys(keys)), dict[str, bytes]()
        with self._lock, self._guarded():
            for start in range(0, len(wanted), _AT_ONCE):
                part = wanted[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, value FROM responses WHERE key IN ({marks})"
                found.update(self._connection.execute(query, part))
        return found

    def _write(self, rows: Mapping[str, bytes]) -> dict[str, bytes]:
        """Keep the rows; back come those in the file, where another process may have been first."""
        if not rows:
            return {}
        with self._lock, self._guarded():
            with self._connection:
                self._connection.executemany("INSERT OR IGNORE INTO responses VALUES (?, ?)", list(rows.items()))
            return self._read(list(rows))

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DataError(f"the response cache {self.path} cannot be used: {error}") from error


def _packed(completions: Sequence[Completion]) -> bytes:
    return json.dumps([asdict(one) for one in completions]).encode()


def _open(path: Path) -> sqlite3.Connection:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(path, timeout=_PATIENCE_SECONDS, check_same_thread=False)
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        # Read second: another process that makes the file meanwhile names its application with its first table.
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application != _APPLICATION and tables:
            raise DataError(f"{path} is a database of something else, allowed: a response cache or a new file")
        connection.execute("PRAGMA journal_mode = WAL")
        with connection:
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute("CREATE TABLE IF NOT EXISTS responses (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")
    except (sqlite3.Error, DataError) as error:
        if connection is not None:
            connection.close()
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a response cache ({error}); name another file or delete it") from error
    return connection
