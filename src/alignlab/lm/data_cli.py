"""`alignlab data pull | tokenize | show` and `alignlab tokenize`: from a text somewhere to token shards.

`alignlab data filter` is in `alignlab.align.sft_filter_cli`, which stands before this.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.chat import Parser


def data(argv: list[str]) -> int:
    """The `alignlab data` command; returns its exit code."""
    if argv[:1] == ["tokenize"]:  # its flags are those of the config
        return tokenize(argv[1:], prog="alignlab data tokenize")
    parser = Parser(prog="alignlab data", description="Fetch texts, turn them into token shards, and look at both.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="{pull,tokenize,show,filter}")
    pull = actions.add_parser(
        "pull", help="fetch a text into the cache: by catalogue name, from the hub, or from a path"
    )
    pull.add_argument("source", help="a catalogue name (`alignlab data show` lists them), hub:owner/name, or a path")
    pull.add_argument("--name", default="", help="the name to keep it under (default: from the source)")
    pull.add_argument("--field", default="text", help="field or column with the text (default: text)")
    pull.add_argument("--split", default="train", help="split of a hub dataset (default: train)")
    pull.add_argument("--separator", help="text that parts the documents of a .txt file; \\n is a line break")
    pull.add_argument("--limit", type=int, default=0, help="most documents to take (default: all)")
    actions.add_parser("tokenize", help="make token shards; the same as `alignlab tokenize`")
    actions.add_parser("filter", help="look for bad records in a file for fine-tuning (`alignlab data filter --help`)")
    show = actions.add_parser(
        "show", help="without a name: the catalogue; else what a text or a tokenised corpus holds"
    )
    show.add_argument("what", nargs="?", default="", help="a pulled text, a path to text, or a tokenised corpus")
    show.add_argument("--field", default="text", help="field or column with the text (default: text)")
    show.add_argument("--json", action="store_true", help="as JSON, one object a line")
    options = parser.parse_args(argv)
    (_pull if options.action == "pull" else _show)(options)
    return 0


def tokenize(argv: list[str], prog: str = "alignlab tokenize") -> int:
    """The `alignlab tokenize` command; returns its exit code."""
    from alignlab.core.config import parse_cli
    from alignlab.core.progress import Progress
    from alignlab.lm.tokenize_corpus import TokenizeConfig, tokenize_corpus

    # What comes before the first flag is the text, so that its flag need not be spelled out.
    n_sources = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    sources, flags = argv[:n_sources], argv[n_sources:]
    if sources:
        flags = ["--source", *sources, *flags]
    config = parse_cli(TokenizeConfig, flags, prog=prog)
    corpus = tokenize_corpus(config, progress=Progress())
    _print_facts(describe_tokens(corpus.path))
    return 0


def _pull(options: argparse.Namespace) -> None:
    from itertools import islice

    from alignlab.core.progress import Progress
    from alignlab.data.corpus import Corpus
    from alignlab.data.text_catalogue import find_text, store_text
    from alignlab.lm.text_download import pull_text, text_names

    if options.limit < 0:
        raise ConfigError(f"--limit is {options.limit}, allowed: 0 (all) or a positive whole number")
    source, progress = options.source, Progress()
    if source in text_names() and not Path(source).exists():
        print(pull_text(source, keep_as=options.name, progress=progress))
        return
    if not source.startswith("hub:") and not Path(source).expanduser().exists():
        near = f"known texts: {', '.join(text_names())}; a dataset on the hub is hub:owner/name"
        raise DataError(f"{source!r} is neither a path nor a text of the catalogue; {near}")
    separator = options.separator.replace("\\n", "\n") if options.separator is not None else None
    corpus = Corpus(source, options.field, separator, options.split)
    name = options.name or _name_of(source)
    with progress.task(f"pulling {name}", options.limit or None, "documents") as task:

        def counted() -> Any:
            for document in islice(corpus, options.limit or None):
                task.advance()
                yield document

        store_text(name, counted(), source=source, licence="as at its source")
    print(find_text(name))


def _name_of(source: str) -> str:
    if source.startswith("hub:"):
        return source.removeprefix("hub:").replace("/", "--").replace(":", "--")
    return Path(source).expanduser().resolve().name.partition(".")[0] or "text"


def _show(options: argparse.Namespace) -> None:
    if not options.what:
        _show_catalogue(as_json=options.json)
        return
    path = Path(options.what).expanduser()
    is_tokens = any((path / part / "manifest.json").is_file() for part in ("", "train"))
    facts = describe_tokens(path) if is_tokens else describe_text(options.what, options.field)
    if options.json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        _print_facts(facts)


def _show_catalogue(*, as_json: bool) -> None:
    from alignlab.data.text_catalogue import TEXTS, pulled_texts

    pulled = {about.name: about for about in pulled_texts()}
    rows = [
        {"name": e.name, "state": "pulled" if e.name in pulled else "not pulled", "licence": e.licence,
         "description": e.description}
        for e in TEXTS.values()
    ]  # fmt: skip
    rows += [
        {"name": about.name, "state": "pulled", "licence": about.licence, "description": f"from {about.source}"}
        for about in pulled.values()
        if about.name not in TEXTS
    ]
    if as_json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    widths = {key: max(len(row[key]) for row in rows) for key in ("name", "state", "licence")}
    for row in rows:
        print("  ".join(f"{row[key]:<{width}}" for key, width in widths.items()) + f"  {row['description']}")


def describe_text(what: str, field: str = "text") -> dict[str, Any]:
    """Documents, characters and bytes of a pulled text or a corpus at a path, and how its first document begins."""
    from alignlab.data.corpus import Corpus
    from alignlab.data.text_catalogue import check_text
    from alignlab.lm.text_download import resolve_text

    source = resolve_text(what)
    facts: dict[str, Any] = {"text": what, "file": source}
    if source != what:
        about = check_text(what)
        facts |= {"source": about.source, "licence": about.licence, "sha256": about.sha256}
    documents = characters = n_bytes = 0
    begin = ""
    for document in Corpus(source, field):
        begin = begin or document[:200]
        documents += 1
        characters += len(document)
        n_bytes += len(document.encode("utf-8", "replace"))
    return facts | {"documents": documents, "characters": characters, "bytes": n_bytes, "begins": begin}


def describe_tokens(path: Path) -> dict[str, Any]:
    """What a tokenised corpus, or one directory of its shards, holds; reads every shard and compares its hash."""
    from alignlab.data.shards import TokenShards
    from alignlab.lm.tokenized_corpus import SPLITS, open_tokenized

    facts: dict[str, Any] = {"tokens": str(path)}
    if (path / "manifest.json").is_file():
        parts = {"shards": TokenShards.open(path, check="hash")}
    else:
        corpus = open_tokenized(path, check="hash")
        parts = dict(zip(SPLITS, (corpus.train, corpus.validation), strict=True))
        text = corpus.tokenizer.decode(corpus.train.slice(0, min(60, len(corpus.train))), skip_special=False)
        facts["begins"] = text
    for name, shards in parts.items():
        manifest = shards.manifest
        facts |= {
            "tokenizer": f"{manifest.tokenizer.name}, {manifest.tokenizer.vocab_size} tokens",
            f"{name} documents": manifest.documents,
            f"{name} tokens": manifest.tokens,
            f"{name} bytes a token": round(manifest.bytes / manifest.tokens, 3),
            f"{name} files": f"{len(manifest.shards)} × {manifest.dtype}, hashes are right",
            f"{name} source": manifest.source,
        }
    return facts


def _print_facts(facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        text = f"{value:,}" if isinstance(value, int) else str(value)
        print(f"{name:<{width}}  " + text.replace("\n", "\n" + " " * (width + 2)))
