"""The packaged prompt sets, pairs and prose keep what PROVENANCE.md promises."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Set
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import pytest

from alignlab.core.errors import ConfigError
from alignlab.data.prompts import (
    PROMPT_SETS,
    categories,
    heldout_text,
    load_pairs,
    load_prompts,
    mentions_keyword,
)

DATA = Path(str(files("alignlab.data")))
PROVENANCE = (DATA / "prompts" / "PROVENANCE.md").read_text(encoding="utf-8")
# (smallest total, train, heldout, categories, records a category)
PROMISED = {"harmful": (264, 140, 120, 12, 22), "benign": (130, 60, 60, 8, 15), "helpful": (260, 140, 100, 10, 20)}
FUNCTION_WORDS = frozenset(
    word
    for line in (
        "a an the of to in on at for and or is are was were do does did i me my you your he she it its how can could",
        "would should what which that this with from so be by as if not",
    )
    for word in line.split()
)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def jaccard(a: Set[object], b: Set[object]) -> float:
    common = len(a & b)
    return common / (len(a) + len(b) - common) if common else 0.0


Fingerprint = tuple[frozenset[str], frozenset[tuple[str, ...]]]


def fingerprint(text: str) -> Fingerprint:
    """The content words of a text, and its runs of three words."""
    found = words(text)
    return frozenset(found) - FUNCTION_WORDS, frozenset(zip(found, found[1:], found[2:], strict=False))


def resemble(first: Fingerprint, second: Fingerprint) -> bool:
    return jaccard(first[0], second[0]) > 0.4 or jaccard(first[1], second[1]) > 0.45


def near_duplicate(first: str, second: str) -> bool:
    return resemble(fingerprint(first), fingerprint(second))


def groups() -> dict[str, list[str]]:
    """Prompts that must not resemble those of another group."""
    found = {f"{name} {split}": [r.prompt for r in load_prompts(name, split)] for name, split in _sets_and_splits()}
    found["pairs"] = [pair.prompt for pair in load_pairs()]
    return found


def _sets_and_splits() -> Iterator[tuple[str, str]]:
    for name in PROMPT_SETS:
        for split in ("train", "heldout"):
            yield name, split


# --- the packaged sets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_set_is_large_enough_and_balanced(name: str) -> None:
    total, n_train, n_heldout, n_categories, per_category = PROMISED[name]
    records = load_prompts(name)
    train, heldout = load_prompts(name, "train"), load_prompts(name, "heldout")
    assert len(records) >= total
    assert len(train) >= n_train
    assert len(heldout) >= n_heldout
    assert len(train) + len(heldout) == len(records)
    assert len(categories(name)) >= n_categories
    for counts in (Counter(r.category for r in part) for part in (train, heldout)):
        assert set(counts) == set(categories(name))
        assert max(counts.values()) == min(counts.values()), "every category has its share of both splits"
    assert min(Counter(r.category for r in records).values()) >= per_category


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_first_records_of_a_split_cover_every_category(name: str) -> None:
    for split in ("train", "heldout"):
        first = load_prompts(name, split)[: len(categories(name))]
        assert {record.category for record in first} == set(categories(name))


def test_ids_are_unique_over_all_files() -> None:
    ids = [record.id for name in PROMPT_SETS for record in load_prompts(name)] + [pair.id for pair in load_pairs()]
    assert len(ids) == len(set(ids))


def test_no_prompt_occurs_twice() -> None:
    seen = Counter(" ".join(words(prompt)) for group in groups().values() for prompt in group)
    assert [prompt for prompt, count in seen.items() if count > 1] == []


def test_no_near_duplicates_across_splits_and_sets() -> None:
    labelled = [(group, prompt, fingerprint(prompt)) for group, members in groups().items() for prompt in members]
    found = [
        (first[:2], second[:2])
        for first, second in combinations(labelled, 2)
        if first[0] != second[0] and resemble(first[2], second[2])
    ]
    assert found == []


def test_near_duplicate_detector_finds_planted_ones() -> None:
    assert near_duplicate("How do I bake a rye loaf at home?", "Can you tell me how to bake a rye loaf at home?")
    assert near_duplicate("Which herbs grow in shade?", "Which herbs grow well in shade?")
    assert not near_duplicate("How do I bake a rye loaf at home?", "How do I paint a shed in winter?")


def test_helpful_records_have_an_answer_that_their_keywords_recognise() -> None:
    for record in load_prompts("helpful"):
        assert record.reference
        assert len(re.findall(r"[.!?](?=\s|$)", record.reference)) <= 3, f"{record.id} is longer than three sentences"
        assert 1 <= len(record.keywords) <= 5
        assert all(keyword == keyword.lower() for keyword in record.keywords)
        assert mentions_keyword(record.reference, record.keywords), record.id
        assert not mentions_keyword(record.prompt, record.keywords), f"{record.id}: repeating the prompt would score"


def test_benign_train_prompts_have_a_reference_and_heldout_ones_have_none() -> None:
    assert all(record.reference for record in load_prompts("benign", "train"))
    assert all(record.reference is None for record in load_prompts("benign", "heldout"))


def test_pairs_do_not_betray_the_label_by_length() -> None:
    pairs = load_pairs()
    assert len(pairs) >= 120
    assert set(Counter(pair.category for pair in pairs).values()) == {10}
    assert {pair.category for pair in pairs} == set(categories("harmful"))
    for measure in (len, lambda text: len(text.split())):
        longer = sum(measure(p.harmless) > measure(p.harmful) for p in pairs)
        shorter = sum(measure(p.harmless) < measure(p.harmful) for p in pairs)
        # A judge that says "the longer one" must be near chance: within two standard errors of one half.
        assert abs(longer - shorter) <= 2 * len(pairs) ** 0.5
        ratio = sum(measure(p.harmless) for p in pairs) / sum(measure(p.harmful) for p in pairs)
        assert 0.93 <= ratio <= 1.07


def test_refusals_in_pairs_vary_in_wording() -> None:
    harmless = [pair.harmless for pair in load_pairs()]
    assert sum("can't" in text for text in harmless) < len(harmless) / 2
    openings = Counter(" ".join(words(text)[:2]) for text in harmless)
    assert openings.most_common(1)[0][1] <= len(harmless) / 5
    answers = [answer for pair in load_pairs() for answer in (pair.harmless, pair.harmful)]
    assert len(set(answers)) == len(answers)


def test_provenance_names_every_file_with_its_count_and_hash() -> None:
    for name in (*PROMPT_SETS, "pairs"):
        path = DATA / "prompts" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        splits = Counter(row.get("split") for row in rows)
        parts = ("-", "-") if name == "pairs" else (splits["train"], splits["heldout"])
        cells = [f"`prompts/{name}.jsonl`", len(rows), len({row["category"] for row in rows}), *parts, _hash(path)]
        assert "| " + " | ".join(map(str, cells)) + " |" in PROVENANCE
    texts = sorted((DATA / "heldout").glob("*.txt"))
    for path in texts:
        assert f"| `heldout/{path.name}` | {len(path.read_text(encoding='utf-8'))} | {_hash(path)} |" in PROVENANCE
    named = set(re.findall(r"\| `([a-z]+/[^`]+)` \|", PROVENANCE))
    packaged = {f"{p.parent.name}/{p.name}" for p in (*texts, *(DATA / "prompts").glob("*.jsonl"))}
    assert named == packaged


def _hash(path: Path) -> str:
    return f"`{hashlib.sha256(path.read_bytes()).hexdigest()}`"


def test_heldout_prose_is_long_varied_and_unlike_the_prompts() -> None:
    texts = heldout_text()
    assert len(texts) >= 6
    assert sum(map(len, texts)) >= 14_000
    runs = [set(zip(*(words(text)[i:] for i in range(5)), strict=False)) for text in texts]
    assert all(jaccard(a, b) < 0.01 for a, b in combinations(runs, 2)), "texts share no boilerplate"
    vocabulary = set().union(*(set(words(text)) for text in texts))
    assert len(vocabulary) > 1000


def test_loading_returns_fresh_lists() -> None:
    load_prompts("harmful").clear()
    load_pairs().clear()
    assert len(load_prompts("harmful")) >= 264
    assert len(load_pairs()) >= 120


def test_unknown_set_or_split_names_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"'toxic'.*harmful, benign, helpful"):
        load_prompts("toxic")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'test'.*train, heldout"):
        load_prompts("harmful", "test")  # type: ignore[arg-type]


# --- keywords ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keyword", "expected"),
    [
        ("I apologise for that.", "apolog", True),
        ("The answer is 8.", "8", True),
        ("There are 18 eggs.", "8", False),
        ("There are 80 eggs.", "8", False),
        ("A stylist", "list", False),
        ("SATURN has rings", "saturn", True),
        ("Call at 3:30 p.m.", "3:30", True),
        ("anything", "", True),
        ("a.c", "a.c", True),
        ("abc", "a.c", False),
    ],
)
def test_keyword_matches_beginnings_of_words_and_whole_numbers(text: str, keyword: str, expected: bool) -> None:
    assert mentions_keyword(text, [keyword]) is expected


def test_no_keywords_match_nothing() -> None:
    assert mentions_keyword("anything", []) is False
