"""How processes start and end: from torchrun's environment, by `tpinit train`, and when one of them hangs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed


def run(*command: str, timeout: float = 150, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python command in a session of its own, one thread a process; nothing of it survives a timeout."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait(timeout=30)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def torchrun(script: Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    where = ("--nproc-per-node", str(processes), "--log-dir", str(script.parent / "logs"))
    return run("-m", "torch.distributed.run", "--standalone", *where, str(script))


def test_train_equals_the_unsharded_model_and_leaves_nothing_behind(tmp_path: Path) -> None:
    result = run("-m", "tpinit.cli.main", "train", "--steps", "2", TMPDIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "Row 3 of 12" in result.stdout
    assert result.stdout.count("model.layers.1.mlp.down_proj.weight") == 1
    assert "equal: over 2 steps" in result.stdout
    left = [one.name for one in tmp_path.iterdir()]
    assert not [name for name in left if not name.startswith("torchinductor")]  # torch's own cache


NO_INPUT_SUM = (
    "from tpinit.runtime.parallel import TPRegionInput\n"
    "from tpinit.runtime.parallel.fused_columns import FusedColumnGroup\n"
    "TPRegionInput.__call__ = lambda _, hidden: hidden\n"
    "FusedColumnGroup.applies_to = lambda *_: False\n"
)
UNCOUNTED = (
    "from tpinit.runtime.training.first_step import FirstStep\n"
    "FirstStep._check_forward = FirstStep.before_update = lambda *_: None\n"
)
BREAKS = {
    # Scaled outputs are equal on both ranks, so only the unsharded model shows them.
    "DIFFERENT: over 3 steps": (
        "from tpinit.runtime.parallel.linear import RowParallelLinear\n"
        "forward = RowParallelLinear.forward\n"
        "RowParallelLinear.forward = lambda *args: forward(*args) * 1.01\n"
    ),
    "q_proj (column): region function (all_reduce in the backward): expected 1 in 1 forwards, saw 0": NO_INPUT_SUM,
    # Without the input's gradient sum the gradients of replicated parameters differ between the ranks.
    "norm of the gradient of model.norm.weight": NO_INPUT_SUM + UNCOUNTED,
}


@pytest.mark.parametrize("words", sorted(BREAKS))
def test_train_fails_where_the_models_differ(tmp_path: Path, words: str) -> None:
    """The negative control: a sharded model that computes something else is reported, or stopped by its own checks."""
    script = tmp_path / "broken.py"
    script.write_text(
        "from tpinit.cli.main import main\n"
        f"{BREAKS[words]}"
        "status = main(['train', '--steps', '3'])\n"
        "print('status', status)\n"
    )
    result = torchrun(script)
    assert words in result.stdout + result.stderr
    assert "status 1" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--config", "CONFIG", "--tp-size", "1"], 1, "SIZE_MISMATCH"),
        (["--config", "CONFIG", "--dtype", "bf16"], 2, "--tp-size"),
        (["--config", "nowhere.json"], 2, "nowhere.json"),
        (["--steps", "0"], 2, "at least 1"),
    ],
)
def test_train_says_what_is_wrong_once(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    config = tmp_path / "ds.json"
    config.write_text('{"train_micro_batch_size_per_gpu": 1, "tensor_parallel": {"autotp_size": 2}}')
    result = run("-m", "tpinit.cli.main", "train", *[str(config) if one == "CONFIG" else one for one in arguments])
    assert result.returncode == code, result.stderr
    assert words in result.stderr
    assert result.stderr.count("tpinit: error:") == 1
    assert "Traceback" not in result.stderr


ALONE = """
import torch
from tpinit.runtime import initialize
try:
    engine, *_ = initialize(model=torch.nn.Linear(2, 2), config=CONFIG, **ARGUMENTS)
except ValueError as error:
    print(type(error).__name__, error)
else:
    print("row", engine.decision.row, engine.groups.tp.group, engine.groups.dp.group)
    torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [("{}", "start the program with torchrun"), ("{'dist_init_required': False}", "dist_init_required=False")],
)
def test_without_torchrun_it_says_so(arguments: str, words: str) -> None:
    result = run("-c", ALONE.replace("ARGUMENTS", arguments).replace("CONFIG", "{}"))
    assert "TpinitError" in result.stdout
    assert words in result.stdout


def test_a_world_of_one_under_torchrun_needs_no_group(tmp_path: Path) -> None:
    script = tmp_path / "alone.py"
    script.write_text(ALONE.replace("ARGUMENTS", "{}").replace("CONFIG", '{"tensor_parallel": {"autotp_size": 1}}'))
    result = torchrun(script, 1)
    assert "row 3 None None" in result.stdout, result.stderr


@pytest.mark.parametrize(("scenario", "words"), [("hang", "did not finish in 2 s"), ("die", "ranks [1] died")])
def test_the_launcher_ends_what_hangs_or_dies(fresh_world: Any, scenario: str, words: str) -> None:
    world = fresh_world(2)
    world.start()
    processes = list(world.processes)
    with pytest.raises(pytest.fail.Exception, match="ranks") as caught:
        world.run(f"scenarios.launch:{scenario}", timeout=2)
    assert words in str(caught.value)
    assert all(process.poll() is not None for process in processes)
    assert not world.processes
