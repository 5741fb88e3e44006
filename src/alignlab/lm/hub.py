"""Models from the Hugging Face hub: only weights, configuration and tokenizer files, never code."""

from __future__ import annotations

import os
import re
from pathlib import Path

from alignlab.core.errors import ModelError
from alignlab.core.files import sha256_file

PATTERNS = [
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
    "chat_template.jinja",
]  # fmt: skip


def find_snapshot(repo_id: str, revision: str = "main") -> Path | None:
    """The complete local copy of a repository, without a network; None if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(repo_id, revision=revision, allow_patterns=PATTERNS, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    complete = (path / "config.json").is_file() and any(path.glob("model*.safetensors"))
    return path if complete else None


def pull_snapshot(repo_id: str, revision: str = "main") -> Path:
    """Download what is missing of a repository and check weights against their SHA-256; returns its directory."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        path = Path(snapshot_download(repo_id, revision=revision, allow_patterns=PATTERNS))
    except GatedRepoError:
        raise ModelError(f"{repo_id}: accept its licence on the hub and log in with `hf auth login` first") from None
    except RepositoryNotFoundError:
        raise ModelError(f"{repo_id}: there is no such model on the hub, or it is private") from None
    except Exception as error:  # whatever the HTTP client of the installed version of the library raises
        found = find_snapshot(repo_id, revision)
        if found is not None:
            return found
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ModelError(f"{repo_id}: cannot be downloaded: {reason}") from None
    check_blobs(path)
    if not any(path.glob("model*.safetensors")):
        raise ModelError(f"{repo_id}: holds no safetensors weights, which are the only ones that are loaded")
    return path


def check_blobs(snapshot: Path) -> None:
    """Large files in the hub's cache are named by their SHA-256: compare, and remove one that does not match."""
    for file in sorted(snapshot.glob("*.safetensors")):
        blob = Path(os.path.realpath(file))
        if re.fullmatch(r"[0-9a-f]{64}", blob.name) and sha256_file(blob) != blob.name:
            blob.unlink()
            file.unlink()
            raise ModelError(f"{file.name}: its SHA-256 is not {blob.name}; the file was removed, pull the model again")
