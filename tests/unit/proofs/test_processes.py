"""The worker processes of `tpinit prove`: none is left, whatever ends the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tpinit.proofs.processes import StoppedBySignal, in_processes, recording_signals, stop_where_asked

PATIENCE = 60.0


def members(session: int) -> dict[int, str]:
    """Return the command line of every process of a session that is alive, by its id."""
    folders = Path("/proc").glob("[0-9]*")
    listed = [(int(one.name), _read(one / "stat"), _read(one / "cmdline")) for one in folders]
    fields = [(one, stat.rpartition(")")[2].split(), command) for one, stat, command in listed if stat]
    return {one: command for one, (state, _, _, of, *_), command in fields if int(of) == session and state != "Z"}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""


def until(holds):
    deadline = time.monotonic() + PATIENCE
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


@pytest.fixture
def started():
    processes = []

    def start(*command):
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        for left in members(process.pid):
            os.kill(left, signal.SIGKILL)
        process.communicate()


def ends_whole(process, number, name):
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number, said
    assert said.splitlines()[-1].startswith(f"tpinit: error: stopped by {name}; ")
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if not line.startswith("[")]) == 1, said
    assert until(lambda: not members(process.pid)), members(process.pid)


@pytest.mark.parametrize(
    ("number", "name", "send"),
    [(signal.SIGINT, "SIGINT", os.killpg), (signal.SIGTERM, "SIGTERM", os.kill)],
    ids=["Ctrl-C in a terminal, which reaches every process", "SIGTERM to the command"],
)
def test_a_signal_in_the_middle_leaves_no_process(started, number, name, send):
    process = started("-m", "tpinit.cli.main", "prove", "--jobs", "2", "--only", "crosshair_*_mismatch")

    def is_in_the_middle():
        commands = members(process.pid).values()
        return sum("crosshair\0check" in one for one in commands) >= 1 and sum("spawn" in one for one in commands) >= 2

    assert until(is_in_the_middle), members(process.pid)
    send(process.pid, number)
    ends_whole(process, number, name)


# A worker that is inside of a solver does not see SIGTERM: here it is blocked.
DEAF = """
import os, signal, sys, time
from tpinit.proofs.processes import StoppedBySignal, in_processes, recording_signals

def deaf(seconds):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.write(2, b"[deaf]\\n")
    time.sleep(seconds)

if __name__ == "__main__":
    try:
        with recording_signals():
            list(in_processes(deaf, [(600,)] * 3, 2))
    except StoppedBySignal as stopped:
        print(f"tpinit: error: stopped by {stopped}; ", file=sys.stderr)
        sys.exit(128 + stopped.signal)
"""


def test_a_signal_while_solvers_run_leaves_no_process_and_no_text(started):
    process = started("-m", "tpinit.cli.main", "prove", "--jobs", "2", "--quiet", "--only", "translated_*")

    def both_are_solving():
        workers = [one for one, command in members(process.pid).items() if "spawn_main" in command]
        return sum("z3" in _read(Path(f"/proc/{one}/maps")) for one in workers) >= 2

    assert until(both_are_solving), members(process.pid)
    time.sleep(1)  # into the theorems: a destructor of Z3's must not see an exception
    os.kill(process.pid, signal.SIGTERM)
    ends_whole(process, signal.SIGTERM, "SIGTERM")


def test_a_worker_that_does_not_listen_is_killed(started, tmp_path):
    (tmp_path / "deaf.py").write_text(DEAF, encoding="utf-8")
    process = started(str(tmp_path / "deaf.py"))
    assert process.stderr is not None
    assert [process.stderr.readline(), process.stderr.readline()] == ["[deaf]\n"] * 2
    os.kill(process.pid, signal.SIGTERM)
    ends_whole(process, signal.SIGTERM, "SIGTERM")


def crosshair_of(process):
    """Return the workers of a run of one theorem, once CrossHair runs in one of them."""
    assert until(lambda: any("crosshair\0check" in one for one in members(process.pid).values()))
    return [one for one, command in members(process.pid).items() if "spawn_main" in command]


ONE = ("-m", "tpinit.cli.main", "prove", "--jobs", "1", "--only", "crosshair_group_size_mismatch")


def test_a_worker_that_dies_is_told(started):
    process = started(*ONE)
    (worker,) = crosshair_of(process)
    os.kill(worker, signal.SIGKILL)
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "killed or ran out of memory (fix: --jobs 1); 0 of 1" in said) == (1, True), said
    assert until(lambda: not members(process.pid)), members(process.pid)


def test_a_command_that_is_killed_leaves_no_process(started):
    process = started(*ONE)
    assert crosshair_of(process)
    process.kill()
    assert until(lambda: not members(process.pid)), members(process.pid)


def test_a_signal_counts_where_it_is_recorded_only():
    before = signal.getsignal(signal.SIGTERM)
    with recording_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StoppedBySignal, match="SIGTERM"):
            stop_where_asked()
    assert signal.getsignal(signal.SIGTERM) is before
    stop_where_asked()


def test_results_arrive_and_an_error_of_the_call_is_raised():
    assert sorted(in_processes(divmod, [(7, 2), (9, 3)], 2)) == [(3, 0), (3, 1)]
    with pytest.raises(ZeroDivisionError):
        list(in_processes(divmod, [(7, 2), (9, 0)], 1))
