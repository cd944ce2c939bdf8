"""Real torchrun: a killed rank, SIGTERM and Ctrl-C, and the losses of a run that nothing disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.distributed

EXAMPLE = ROOT / "examples" / "train_resumable.py"
UPDATES = 8
# Runs the example, and does something in the given update: on rank 1 after its forward, or on rank 0 after its update.
DISTURBED = """
import os, runpy, signal, sys
from tpinit.runtime.training.engine import Engine

what, update, example = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.argv = sys.argv[3:]
first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
backward, step = Engine.backward, Engine.step

def backward_or_die(engine, *args, **kwargs):
    if what == "kill" and first and engine.global_rank == 1 and engine.global_steps + 1 == update:
        os.kill(os.getpid(), signal.SIGKILL)
    return backward(engine, *args, **kwargs)

def step_and_signal(engine, *args, **kwargs):
    if engine.global_rank == 0 and engine.global_steps + 1 == update:
        if what == "terminate":
            os.kill(os.getppid(), signal.SIGTERM)  # torchrun, which passes it on
        elif what == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C: and more than once, since torchrun passes it on too
            os.kill(os.getppid(), signal.SIGINT)
    return step(engine, *args, **kwargs)

Engine.backward, Engine.step = backward_or_die, step_and_signal
runpy.run_path(example, run_name="__main__")
"""


def torchrun(folder: Path, *disturbance: str, restarts: int = 0) -> tuple[int, str]:
    """Run the example with its output in `folder`/run; return the exit status and what was printed."""
    folder.mkdir(exist_ok=True)
    script = folder / "disturbed.py"
    script.write_text(DISTURBED)
    logs = ("--log-dir", str(folder / "logs"))
    where = ("--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts), "--monitor-interval", "0.1")
    arguments = (*(disturbance or ("nothing", "0")), str(EXAMPLE), "--output", str(folder / "run"))
    arguments += ("--updates", str(UPDATES), "--save-every", "2")
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *where, *logs, str(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**inherited, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), "TPINIT_TEST": str(folder)},
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)
    return process.returncode, out


def processes_of(folder: Path) -> list[int]:
    """Return the living processes that a run in `folder` started, by their environment."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/environ")
        if f"TPINIT_TEST={folder}\0" in environment(path)
    ]


def environment(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it has ended, or belongs to another user
        return ""


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "run" / "losses.jsonl").read_text().splitlines()
    return [(line["update"], line["loss"]) for line in map(json.loads, lines)]


def left(folder: Path) -> list[str]:
    """Return what a run left, beside its output and torch's own logs and caches."""
    names = [path.name for path in (folder / "run").iterdir() if not path.name.startswith("global_step")]
    names += [path.name for path in (folder / "tmp").iterdir() if not path.name.startswith("torch")]
    deadline = time.monotonic() + 30
    while (alive := processes_of(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return sorted([*names, *map(str, alive)])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    folder = tmp_path_factory.mktemp("undisturbed")
    status, out = torchrun(folder)
    assert status == 0, out
    assert left(folder) == ["latest", "losses.jsonl"]
    assert [update for update, _ in losses(folder)] == list(range(1, UPDATES + 1))
    return dict(losses(folder))


def test_a_killed_rank_is_restarted_to_the_losses_of_an_undisturbed_run(
    tmp_path: Path, undisturbed: dict[int, float]
) -> None:
    status, out = torchrun(tmp_path, "kill", "4", restarts=1)
    assert status == 0, out
    assert [update for update, _ in losses(tmp_path)] == [1, 2, 3, *range(3, UPDATES + 1)]
    assert [loss - undisturbed[update] for update, loss in losses(tmp_path)] == [0.0] * (UPDATES + 1)
    assert left(tmp_path) == ["latest", "losses.jsonl"]


def test_without_a_restart_the_error_says_which_rank_ended(tmp_path: Path, undisturbed: dict[int, float]) -> None:
    """The control: the same kill, and nobody starts it again."""
    status, _ = torchrun(tmp_path, "kill", "4")
    assert status != 0
    assert len(losses(tmp_path)) == 3
    assert (tmp_path / "run" / "latest").read_text() == "global_step2"
    assert left(tmp_path) == ["latest", "losses.jsonl"]


def test_sigterm_and_ctrl_c_save_and_the_same_command_goes_on(tmp_path: Path, undisturbed: dict[int, float]) -> None:
    for what, update in (("terminate", 3), ("interrupt", 5)):
        status, out = torchrun(tmp_path, what, str(update))
        assert status != 0
        stopped = int((tmp_path / "run" / "latest").read_text().removeprefix("global_step"))
        assert update <= stopped <= update + 1, out  # the signal takes its time over torchrun
        assert f"training stops after update {stopped}" in out
        assert "Traceback" not in out.partition("torch.distributed.run")[0] or "SignalException" in out
        assert left(tmp_path) == ["latest", "losses.jsonl"]
    status, out = torchrun(tmp_path)
    assert status == 0, out
    # `train_batch` of the last update did not return, so its loss was not written.
    assert {update: loss - undisturbed[update] for update, loss in losses(tmp_path)}.keys() <= undisturbed.keys()
    assert [loss - undisturbed[update] for update, loss in losses(tmp_path)] == [0.0] * len(losses(tmp_path))
    assert losses(tmp_path)[-1] == (UPDATES, undisturbed[UPDATES])
