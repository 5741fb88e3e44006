"""`alignlab prefer` on a tiny model: what it reads, measures, resumes and refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import tiny_run

from alignlab.align.direct.cli import prefer
from alignlab.align.direct.measures import pair_gains, rated_gains
from alignlab.align.direct.reading import PairData, RatedData, read_data, split
from alignlab.align.pairs import PreferencePair
from alignlab.core.errors import ConfigError, DataError
from alignlab.lm.language_model import load


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_run.build_model(tmp_path_factory.mktemp("models")))


def rows(n: int = 40) -> list[dict[str, object]]:
    """Answers of vowels are better than those of consonants."""
    rng, found = random.Random(0), []
    for i in range(n):
        good, bad = ("".join(rng.choices(letters, k=rng.randint(4, 9))) for letters in ("aeiou", "bcdfg"))
        found.append({"prompt": [{"role": "user", "content": f"question {i}"}], "chosen": good, "rejected": bad})
    return found


def written(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def rated(records: list[dict[str, object]]) -> list[dict[str, object]]:
    sides = [("chosen", True), ("rejected", False)]
    return [{"prompt": r["prompt"], "response": r[side], "good": good} for r in records for side, good in sides]


@pytest.mark.parametrize(("method", "rank"), [("dpo", 4), ("simpo", 0)])
def test_pairs_teach_what_generalises(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, rank: int
) -> None:
    data = written(tmp_path / "pairs.jsonl", rows())
    flags = ["--method", method, "--model", model, "--name", f"preferred-{method}", "--rank", str(rank)]
    flags += ["--epochs", "4", "--learning-rate", "0.01", "--heldout", "0.3", "--run", str(tmp_path / "run")]
    arguments = [str(data), *flags, "--device", "cpu", "--batch-size", "4"]
    assert prefer(arguments) == 0
    said = capsys.readouterr().out
    assert f"28 pairs learned from by {method}, 28 updates" in said
    measures = json.loads((tmp_path / "run" / "artifacts" / "measures.json").read_text())
    assert measures["items"] == 12
    assert measures["values"]["chosen gained more (implicit reward)"]["estimate"] > 0.9
    assert measures["values"]["chosen likelier per token, after"]["estimate"] > 0.9
    assert prefer(arguments) == 0  # the same command again finds everything done
    assert capsys.readouterr().out == said
    load(f"preferred-{method}", dtype="float32")


def test_rated_answers_teach_kto(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = written(tmp_path / "rated.jsonl", rated(rows(30)))
    flags = ["--method", "kto", "--model", model, "--rank", "4", "--epochs", "3", "--learning-rate", "0.01"]
    assert prefer([str(data), *flags, "--run", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "rated answers learned from by kto" in capsys.readouterr().out
    values = json.loads((tmp_path / "run" / "artifacts" / "measures.json").read_text())["values"]
    good, bad = (values[f"change of {name} answers, nats a token"]["estimate"] for name in ("good", "bad"))
    assert good > bad + 0.1


def test_nothing_need_be_kept_back(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = written(tmp_path / "pairs.jsonl", rows(4))
    flags = ["--method", "orpo", "--heldout", "0", "--rank", "2", "--device", "cpu", "--run", str(tmp_path / "run")]
    assert prefer([str(data), "--model", model, *flags]) == 0
    said = capsys.readouterr().out
    assert "4 pairs learned from by orpo, 1 updates" in said
    assert "dialogues" not in said


def test_gains_by_hand() -> None:
    pairs = [PreferencePair(f"q {i}", "a", "b", probability=p) for i, p in enumerate((1.0, 0.9, 0.5))]
    before = np.array([[-4.0, -3.0], [-4.0, -3.0], [0.0, 0.0]])
    after = np.array([[-2.0, -3.5], [-5.0, -5.0], [-9.0, 0.0]])
    tokens = np.array([[2.0, 1.0], [4.0, 1.0], [1.0, 1.0]])
    found = {name: value.estimate for name, value in pair_gains(before, after, tokens, pairs).values.items()}
    assert list(found.values()) == pytest.approx([1.0, 1.0, 1.0, (1.0 - 0.25) / 2, (-0.5 - 2.0) / 2])
    assert pair_gains(before, after, tokens, pairs).items == 2
    worse = pair_gains(before, np.array([[-4.5, -3.2], [-5.0, -5.0], [0, 0]]), tokens, pairs)
    assert worse.values["chosen gained more (implicit reward)"].estimate == 0.5
    worse = pair_gains(before, np.array([[-4.5, -3.3], [-5.0, -5.0], [0, 0]]), tokens, pairs, per_token=True)
    assert worse.values["chosen gained more (implicit reward)"].estimate == 1.0
    with pytest.raises(DataError, match="no pair to measure on"):
        pair_gains(before[2:], after[2:], tokens[2:], pairs[2:])
    changes = rated_gains(before[:, 0], after[:, 0], tokens[:, 0], [True, True, False], [0, 1, 2]).values
    assert [value.estimate for value in changes.values()] == pytest.approx([(1.0 - 0.25) / 2, -9.0])


def test_what_is_read(tmp_path: Path) -> None:
    soft = [{**row, "probability": 0.7} for row in rows(2)] + [{**rows(3)[2], "tie": True}]
    data = read_data(written(tmp_path / "soft.jsonl", soft), "dpo")
    assert isinstance(data, PairData)
    assert [pair.probability for pair in data.items] == [0.7, 0.7, 0.5]
    talk = "\n\nHuman: hi\n\nAssistant: "
    data = read_data(written(tmp_path / "hh.jsonl", [{"chosen": talk + "yes", "rejected": talk + "no"}]), "orpo")
    assert data.items[0].chosen == "yes"  # type: ignore[union-attr]
    scored = {"instruction": "q", "completions": [{"response": r, "overall_score": s} for r, s in (("a", 1), ("b", 7))]}
    data = read_data(written(tmp_path / "scored.jsonl", [scored]), "ipo")
    assert (data.items[0].chosen, data.items[0].rejected) == ("b", "a")  # type: ignore[union-attr]
    single = read_data(written(tmp_path / "rated.jsonl", rated(rows(10))), "kto")
    assert isinstance(single, RatedData)
    learn, kept = split(single, 0.3, seed=0)
    asked = [{example.prompt[0]["content"] for example in part.items} for part in (learn, kept)]  # type: ignore
    assert not asked[0] & asked[1]
    assert len(learn.items) + len(kept.items) == 20
    assert split(single, 0, seed=0)[1].items == []


def test_what_is_refused(model: str, tmp_path: Path) -> None:
    single = written(tmp_path / "rated.jsonl", rated(rows(4)))
    run = ["--model", model, "--run", str(tmp_path / "run")]
    with pytest.raises(DataError, match="only kto learns from; dpo needs pairs"):
        prefer([str(single), *run])
    with pytest.raises(DataError, match="are good, KTO needs good and bad ones"):
        prefer([str(written(tmp_path / "all.jsonl", rated(rows(4))[::2])), "--method", "kto", *run])
    same = [{**row, "rejected": row["chosen"]} for row in rows(3)]
    with pytest.raises(DataError, match="same text in all 3"):
        prefer([str(written(tmp_path / "same.jsonl", same)), *run])
    with pytest.raises(DataError, match="cannot read"):
        prefer([str(tmp_path / "absent.jsonl"), *run])
    with pytest.raises(ConfigError, match="heldout is"):
        prefer([str(single), "--heldout", "1"])
    assert not (tmp_path / "run").exists()
