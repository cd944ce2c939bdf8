"""A fork server: it imports a library once, then forks the ranks of each job, one world at a time.

It reads jobs as JSON lines from stdin and writes reports as JSON lines to stdout. Each job has its own processes,
process groups and time limit, and leaves nothing but its report.
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
_MEMORY = 6 << 30  # bytes of address space per rank: an unchecked size must not exhaust the machine


def main() -> None:
    """Serve until stdin ends. The arguments are the name of the library and the folder for temporary files."""
    signal.signal(signal.SIGTERM, _end)
    ctypes.CDLL(None).prctl(_DEATH, signal.SIGTERM)  # the client may be killed during a build
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of the library must not mix with the reports
    implementation = IMPLEMENTATIONS[sys.argv[1]]()
    torch.set_num_threads(1)
    template = build()
    implementation.prepare()
    gc.collect()
    gc.freeze()
    _send(answers, {"ready": True, "name": implementation.name, "version": implementation.version})
    for line in sys.stdin:
        _send(answers, _serve(json.loads(line), implementation, template))
    shutil.rmtree(sys.argv[2], ignore_errors=True)


def _end(*_: object) -> None:
    """End this server, its compilers and (by PR_SET_PDEATHSIG) its ranks, and remove its folder."""
    shutil.rmtree(sys.argv[2], ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def _send(answers: Any, message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message, default=str) + "\n")
    answers.flush()


def _serve(job: Mapping[str, Any], implementation: TrainingLibrary, template: Any) -> dict[str, Any]:
    """Run one job in a world of forked ranks and return their reports."""
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
    """Run one rank in the forked process; it exits and never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # The end of the server, for any reason, ends its ranks.
        ctypes.CDLL(None).prctl(_DEATH, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        log = os.open(state.home / f"log.{state.rank}", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        stack = (state.home / f"stack.{state.rank}").open("w", encoding="utf-8")
        faulthandler.dump_traceback_later(max(job["timeout"] - _GRACE, 0.1), file=stack)
        launch = {"RANK": state.rank, "LOCAL_RANK": state.rank, "WORLD_SIZE": state.world, "MASTER_PORT": 1}
        os.environ.update({name: str(number) for name, number in launch.items()}, MASTER_ADDR="127.0.0.1")
        store = FileStore(str(state.home / "store"), state.world)
        limit = timedelta(seconds=job["timeout"] * 2)  # `_wait` ends a hanging rank before this
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
    """Wait for these processes and kill them at the deadline. Returns per rank "done", "hung" or its exit code."""
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
    """Return a line of a stack dump as file:function, without folders."""
    file, _, function = line.strip().removeprefix("File ").partition(" in ")
    return f"{'/'.join(Path(file.split(chr(34))[1]).parts[-2:])}:{function}"


if __name__ == "__main__":
    main()
