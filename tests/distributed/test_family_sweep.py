"""The sweep over all models, on a few of them: its ranks are forked, and a model that breaks does not stop it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import TESTS

pytestmark = pytest.mark.distributed


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # In a process of its own: pytest runs threads, and a process with threads can't be forked safely.
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


MISHAPS = """
import os, pathlib, time
import torch
from families import ranks

def meet(rank):
    # Both ranks join the group before one ends: an error while the other still connects is not what is tested here.
    folder = pathlib.Path(os.environ["TPINIT_SWEEP_FOLDER"])
    (folder / f"met.{rank}").touch()
    while not (folder / f"met.{1 - rank}").exists():
        time.sleep(0.001)

def case(rank, how):
    meet(rank)
    if how == "value":
        one = torch.ones(1)
        torch.distributed.all_reduce(one)
        return float(one)
    if how == "raise" or (how == "one" and rank == 1):
        raise KeyError("no such thing")
    if how == "die":
        os._exit(3)
    time.sleep(100)

for how in ("value", "raise", "die", "hang", "one", "value"):
    ends = ranks.run(lambda rank: case(rank, how), 2, 5.0)
    print([end.kinds[0] if end.kinds else end.value for end in ends])
"""


def test_ranks_that_raise_die_or_hang_are_distinguished_and_do_not_harm_later_ones() -> None:
    done = python(MISHAPS)
    assert done.stdout.splitlines() == [
        "[2.0, 2.0]",
        "['KeyError', 'KeyError']",
        "['Died', 'Died']",
        "['Hung', 'Hung']",
        "['Stopped', 'KeyError']",
        "[2.0, 2.0]",
    ], done.stderr


SWEEP = """
import sys
from families import cases, sweep

if sys.argv.pop(1) == "spoiled":
    cases.preload("ours")
    import torch
    from support import family_training
    right = family_training.initialize

    def spoiled(**arguments):
        made = right(**arguments)
        with torch.no_grad():
            next(made[0].module.parameters()).mul_(1.01)
        return made

    family_training.initialize = spoiled
sys.exit(sweep.main())
"""


@pytest.mark.parametrize(("how", "status", "word"), [("as it is", 0, "exact 0.50"), ("spoiled", 1, "**WRONG**")])
def test_a_wrong_model_fails_the_sweep_and_a_refused_one_does_not(
    tmp_path: Path, how: str, status: int, word: str
) -> None:
    page = tmp_path / "models.md"
    arguments = ["llama", "mamba", "--kind", "causal", "--peers", "none", "--document", str(page)]
    done = python(SWEEP, how, *arguments)
    assert done.returncode == status, done.stderr
    text = page.read_text(encoding="utf-8")
    assert f"| `llama` | the model's transformers tp_plan | {word}" in text
    assert "| `mamba` | — | refused: " in text
    assert ("llama (causal): WRONG" in done.stderr) == (how == "spoiled")
