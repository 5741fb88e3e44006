"""The launch recipes: torchrun understands their arguments, and leaves to alignlab what is alignlab's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from torch.distributed.run import parse_args

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.parametrize("recipe", ["slurm/pretrain.sbatch", "kubernetes/pretrain.yaml"])
def test_torchrun_takes_the_arguments(recipe: str) -> None:
    text = (DEPLOY / recipe).read_text()
    found = re.search(r"torchrun \\\n((?:.*\\\n)*.*)", text)
    assert found is not None
    words = shlex.split(found[1].replace("\\\n", " ").replace('"$@"', "corpora/web --config recipe.yaml"))
    plain = [word.replace("$SLURM_NNODES", "2").replace("$gpus", "8") for word in words]
    taken = parse_args(plain)
    assert taken.module
    assert taken.training_script == "alignlab"
    assert taken.training_script_args[0] == "pretrain"
    assert "--config" in taken.training_script_args


def test_torchrun_would_take_run_for_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Why the recipes and the guide name ALIGNLAB_RUNS instead: should this fail, `--run` has become possible."""
    with pytest.raises(SystemExit):
        parse_args(["--module", "alignlab", "pretrain", "corpus", "--run", "somewhere"])
    assert "ambiguous option: --run" in capsys.readouterr().err
