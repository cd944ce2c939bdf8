"""A fork server: imports an implementation once, then forks the ranks of every job it is given, one world at a time.

Jobs come as JSON lines on stdin, reports go as JSON lines to stdout. A job has its own processes, its own process
groups and a time limit; when it is over nothing of it is left but its report.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore
from tpinit.conformance.adapters.deepspeed.ranks.case import RankState, run_job
from tpinit.conformance.adapters.deepspeed.ranks.implementations import IMPLEMENTATIONS, TrainingLibrary
from tpinit.conformance.adapters.deepspeed.ranks.model import build

__all__ = ["main"]

_GRACE = 2.0  # seconds between the stack dump of a rank that hangs and its end
_DEATH = 1  # PR_SET_PDEATHSIG
_MEMORY = 6 << 30  # bytes of address space: a size that nobody checked must not take the machine with it


def main() -> None:
    """Serve until stdin ends. The arguments: the implementation's name, and the folder that this server may fill."""
    signal.signal(signal.SIGTERM, _end)
    ctypes.CDLL(None).prctl(_DEATH, signal.SIGTERM)  # who started this server may be killed in the middle of a build
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what an implementation prints must not get between the answers
    implementation = IMPLEMENTATIONS[sys.argv[1]]()
    torch.set_num_threads(1)
    template = build()
    implementation.prepare()
    gc.collect()
    gc.freeze()
    _say(answers, {"ready": True, "name": implementation.name, "version": implementation.version})
    for line in sys.stdin:
        _say(answers, _serve(json.loads(line), implementation, template))
    shutil.rmtree(sys.argv[2], ignore_errors=True)


def _end(*_: object) -> None:
    """End this server, its compilers and, by their own wish, its ranks; leave nothing in the file system."""
    shutil.rmtree(sys.argv[2], ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def _say(answers: Any, message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message, default=str) + "\n")
    answers.flush()


def _serve(job: Mapping[str, Any], implementation: TrainingLibrary, template: Any) -> dict[str, Any]:
    """Run one job in a world of forks and return what its ranks reported."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tpinit-case-") as folder:
        home = Path(folder)
        ranks: dict[int, int] = {}
        for rank in range(job["world"]):
            process = os.fork()
            if process == 0:
                _rank(job, RankState(implementation, template, rank, job["world"], home))
            ranks[process] = rank
        ends = _wait(ranks, begun + job["timeout"])
        reports = [_report(home, rank) for rank in range(job["world"])]
    hung = sorted(rank for rank, end in ends.items() if end == "hung")
    died = {rank: end for rank, end in sorted(ends.items()) if end not in ("done", "hung")}
    seconds = round(time.monotonic() - begun, 2)
    return {"id": job["id"], "ranks": reports, "hung": hung, "died": died, "seconds": seconds}


def _rank(job: Mapping[str, Any], state: RankState) -> None:
    """Be one rank, and never return."""
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # Whatever ends the server ends its ranks.
        ctypes.CDLL(None).prctl(_DEATH, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        log = os.open(state.home / f"log.{state.rank}", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        stack = (state.home / f"stack.{state.rank}").open("w", encoding="utf-8")
        faulthandler.dump_traceback_later(max(job["timeout"] - _GRACE, 0.1), file=stack)
        place = {"RANK": state.rank, "LOCAL_RANK": state.rank, "WORLD_SIZE": state.world, "MASTER_PORT": 1}
        os.environ.update({name: str(number) for name, number in place.items()}, MASTER_ADDR="127.0.0.1")
        store = FileStore(str(state.home / "store"), state.world)
        limit = timedelta(seconds=job["timeout"] * 2)  # a collective that waits for ever is ours to end, as a hang
        dist.init_process_group("gloo", store=store, rank=state.rank, world_size=state.world, timeout=limit)
        run_job(job, state)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(ranks: dict[int, int], deadline: float) -> dict[int, str]:
    """Wait for these processes; end those that are late. Returns how each rank ended."""
    ends: dict[int, str] = {}
    running = dict(ranks)
    while running and time.monotonic() < deadline:
        for process in list(running):
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
                ends[running.pop(process)] = "done" if code == 0 else f"exit code {code}"
        time.sleep(0.005)
    for process, rank in running.items():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        ends[rank] = "hung"
    return ends


def _report(home: Path, rank: int) -> dict[str, Any]:
    path = home / f"report.{rank}.json"
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"steps": []}
    log, stack = home / f"log.{rank}", home / f"stack.{rank}"
    if not report.get("done") and log.exists():
        report["log"] = log.read_text(encoding="utf-8", errors="replace")[-1500:]
        report["stack"] = [_frame(line) for line in stack.read_text(encoding="utf-8").splitlines() if "File" in line][
            :8
        ]
    return report


def _frame(line: str) -> str:
    """A line of a stack dump as file:function, without the folders of this machine."""
    file, _, function = line.strip().removeprefix("File ").partition(" in ")
    return f"{'/'.join(Path(file.split(chr(34))[1]).parts[-2:])}:{function}"


if __name__ == "__main__":
    main()
