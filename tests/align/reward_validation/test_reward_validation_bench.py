"""bench/overoptimisation.py end to end on a random model of a few thousand weights, in parts and interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import overoptimisation
import pytest
import tiny_run

from alignlab.core.errors import ConfigError

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_the_experiment_in_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = overoptimisation
    model, out = str(tiny_run.build_model(tmp_path / "model")), tmp_path / "out"
    flags = ["--model", model, "--out", str(out), "--max-tokens", "6", "--dtype", "float32"]
    for part in ("models", "bon", "rl", "fit"):
        bench.main([*flags, "--part", part])
    first = json.loads((out / "findings.json").read_text())
    assert set(first["curves"]) == {"best of n, proxy-16", "PPO, proxy-16"}
    assert [point["at"] for point in first["curves"]["best of n, proxy-16"]["points"]] == [1, 2, 4, 8, 16]
    assert [point["at"] for point in first["curves"]["PPO, proxy-16"]["points"]] == [0, 2, 4, 6]
    assert (out / "overoptimisation.html").stat().st_size > 1e6
    (out / "bon" / "00000.json").unlink()  # as if it had been interrupted there
    bench.main(flags)
    assert json.loads((out / "findings.json").read_text()) == first
    with pytest.raises(ConfigError, match="other settings"):
        bench.main([*flags, "--samples", "8"])
    assert "gold reward on dialogues" in capsys.readouterr().out
