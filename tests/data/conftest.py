"""Small token corpora that the tests of shards and loaders share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alignlab.data.shards import TokenizerInfo, TokenShards, write_shards

SEPARATOR = 0
INFO = TokenizerInfo("toy", "a" * 64, 1000)


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., TokenShards]:
    """Writes documents as shards in a new directory and opens them."""
    made: list[Path] = []

    def make(documents: list[list[int]], shard_tokens: int = 10**6) -> TokenShards:
        path = tmp_path / f"corpus-{len(made)}"
        made.append(path)
        pairs = ((ids, 2 * len(ids)) for ids in documents)
        write_shards(pairs, path, tokenizer=INFO, separator=SEPARATOR, shard_tokens=shard_tokens, source="toy")
        return TokenShards.open(path, check="hash")

    return make
