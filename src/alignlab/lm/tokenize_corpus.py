"""From texts to a tokenised corpus: duplicates removed, validation set apart, a tokenizer made, ids written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignlab.core.config import require, save_yaml
from alignlab.core.errors import DataError
from alignlab.core.progress import SILENT, Progress
from alignlab.data.corpus import Corpus
from alignlab.data.dedup import Duplicates, find_duplicates
from alignlab.data.validation_split import split_validation
from alignlab.lm.text_download import resolve_text
from alignlab.lm.tokenized_corpus import TokenizedCorpus, write_tokenized
from alignlab.lm.tokenizer import Tokenizer
from alignlab.lm.tokenizer_training import byte_vocabulary, character_vocabulary, load_tokenizer, train_bpe

CONFIG_FILE = "tokenize.yaml"


@dataclass(frozen=True)
class TokenizeConfig:
    """Turn texts into token shards with a manifest: OUT/train, OUT/validation and OUT/tokenizer."""

    out: Path
    """The directory to make; it must not exist."""
    source: tuple[str, ...] = ()
    """Texts: pulled names, paths of .txt, .jsonl or .parquet files or of directories, hub:owner/name."""
    tokenizer: str = "bpe"
    """bpe (trained on the text), character, byte, or the directory of a tokenizer."""
    vocab_size: int = 8192
    """Tokens of a trained bpe vocabulary, special tokens included."""
    validation: float = 0.1
    """The share of the text that is held out for validation."""
    validation_by: Literal["auto", "documents", "end"] = "auto"
    """Hold out whole documents, or the end of each; auto: whole ones where there are at least 20."""
    validation_source: tuple[str, ...] = ()
    """Texts for validation; then nothing of the other texts is held out."""
    duplicates: Literal["keep", "exact", "near"] = "exact"
    """Which duplicate documents to remove: none, equal ones, or similar ones too."""
    similarity: float = 0.8
    """From which Jaccard similarity of five-word runs on documents are near duplicates."""
    field: str = "text"
    """Field of JSONL, column of Parquet or feature of a hub dataset with the text."""
    separator: str | None = None
    """Text that parts the documents of .txt files; \\n is a line break. Without it a file is one document."""
    split: str = "train"
    """The split of hub datasets."""
    shard_tokens: int = 100_000_000
    """A shard is closed when it has this many tokens."""
    seed: int = 0
    """Decides which documents are held out and how near duplicates are hashed."""

    def __post_init__(self) -> None:
        require(bool(self.source), "source", self.source, "at least one text: a pulled name, a path or hub:owner/name")
        require(0 < self.validation < 1, "validation", self.validation, "a number between 0 and 1")
        require(0 < self.similarity <= 1, "similarity", self.similarity, "a number above 0 and up to 1")
        require(self.vocab_size >= 1, "vocab_size", self.vocab_size, "a positive whole number")
        require(self.shard_tokens >= 1, "shard_tokens", self.shard_tokens, "a positive whole number")
        require(self.separator != "", "separator", self.separator, "some text, or none at all")


@dataclass(frozen=True)
class _Texts:
    """Several corpora as one, without the documents that are not kept."""

    corpora: tuple[Corpus, ...]
    duplicates: Duplicates | None = None

    def __iter__(self) -> Iterator[str]:
        documents = (document for corpus in self.corpora for document in corpus)
        return documents if self.duplicates is None else self.duplicates.select(documents)


def tokenize_corpus(config: TokenizeConfig, *, progress: Progress = SILENT) -> TokenizedCorpus:
    """Do what `config` says; the directory `config.out` appears whole or not at all.

    Raises:
        DataError: a text is missing, damaged or empty, nothing is left for validation, or `out` exists.
    """
    if config.out.exists():
        raise DataError(f"{config.out} already exists; name another directory with --out, or remove it first")
    texts = _without_duplicates(_texts(config.source, config), config, progress)
    if not any(texts):
        raise DataError(f"{', '.join(config.source)}: the corpus is empty, no document has any text")
    if config.validation_source:
        train: Iterable[str] = texts
        held_out: Iterable[str] = _texts(config.validation_source, config)
    else:
        train, held_out = split_validation(texts, config.validation, by=config.validation_by, seed=config.seed)
        if not any(held_out):
            raise DataError(
                f"no document falls into the {config.validation:.0%} for validation; hold out the end of each document "
                "(--validation-by end) or a larger share"
            )
        if not any(train):
            raise DataError(
                f"{', '.join(config.source)}: too little text, without the {config.validation:.0%} for validation none "
                "is left; use more text, or --validation-source"
            )
    tokenizer = _tokenizer(config, train, held_out, progress)
    name = config.tokenizer if config.tokenizer in ("bpe", "character", "byte") else Path(config.tokenizer).name
    corpus = write_tokenized(
        config.out,
        tokenizer,
        train,
        held_out,
        name=name,
        source=", ".join(config.source),
        shard_tokens=config.shard_tokens,
        progress=progress,
    )
    save_yaml(config, config.out / CONFIG_FILE)
    return corpus


def _texts(sources: tuple[str, ...], config: TokenizeConfig) -> _Texts:
    separator = None if config.separator is None else config.separator.replace("\\n", "\n")
    return _Texts(tuple(Corpus(resolve_text(s), config.field, separator, config.split) for s in sources))


def _without_duplicates(texts: _Texts, config: TokenizeConfig, progress: Progress) -> _Texts:
    if config.duplicates == "keep":
        return texts
    with progress.task("looking for duplicates", None, "documents") as task:

        def counted() -> Iterator[str]:
            for document in texts:
                task.advance()
                yield document

        threshold = config.similarity if config.duplicates == "near" else None
        found = find_duplicates(counted(), threshold=threshold, seed=config.seed)
    if found.exact or found.near:
        near = f", {found.near} near ones" if config.duplicates == "near" else ""
        progress.say(f"removed of {found.documents} documents: {found.exact} exact duplicates{near}")
    return _Texts(texts.corpora, found)


def _tokenizer(config: TokenizeConfig, train: Iterable[str], held_out: Iterable[str], progress: Progress) -> Tokenizer:
    """A trained one sees only the text for training; characters are counted in both parts, as there is none else."""
    if config.tokenizer == "byte":
        return byte_vocabulary()
    if config.tokenizer == "character":
        return character_vocabulary(document for part in (train, held_out) for document in part)
    if config.tokenizer != "bpe":
        if not Path(config.tokenizer).is_dir():
            raise DataError(
                f"tokenizer is {config.tokenizer!r}, allowed: bpe, character, byte, or a directory with one"
            )
        return load_tokenizer(config.tokenizer)
    with progress.task("training the tokenizer", None, "documents") as task:

        def counted() -> Iterator[str]:
            for document in train:
                task.advance()
                yield document

        return train_bpe(counted(), config.vocab_size)
