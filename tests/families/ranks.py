"""Run a function in forked ranks: each call forks new processes, so a crash, hang or leak of one affects no other.

The libraries are imported once, before the first fork; each rank makes the process group.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

_DEATH = 1  # PR_SET_PDEATHSIG
_GRACE = 3.0  # seconds that the other ranks have to end after one has failed: they may wait for it


@dataclass(frozen=True, slots=True)
class RankEnd:
    """How one rank ended: with a value, or with an exception's class names, text and traceback.

    `kinds` are the names of the exception's class and its bases, or one of `Died`, `Hung` and `Stopped` (because
    another rank had failed) for a rank that neither returned nor raised; empty if the rank returned a value.
    """

    value: Any = None
    kinds: tuple[str, ...] = ()
    text: str = ""
    trace: str = ""


def run(case: Callable[[int], Any], size: int, timeout: float) -> list[RankEnd]:
    """Run `case(rank)` in `size` forked ranks of one gloo group and return how each ended; `timeout` in seconds."""
    with tempfile.TemporaryDirectory(prefix="tpinit-sweep-") as name:
        folder, running, ends = Path(name), {}, {}
        sys.stdout.flush()
        for rank in range(size):
            pid = os.fork()
            if not pid:
                _rank(case, rank, size, folder, timeout)
            running[rank] = pid
        deadline, why = time.monotonic() + timeout, "Hung"
        while running and time.monotonic() < deadline:
            time.sleep(0.01)
            for rank, pid in list(running.items()):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    del running[rank]
                    ends[rank] = _end(folder, rank)
                    if ends[rank].kinds and why == "Hung":
                        deadline, why = min(deadline, time.monotonic() + _GRACE), "Stopped"
        for rank, pid in running.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            text = f"not finished in {timeout:.0f} s" if why == "Hung" else "another rank had failed"
            ends[rank] = RankEnd(kinds=(why,), text=text, trace=_log(folder, rank))
    return [ends[rank] for rank in range(size)]


def failure(ends: list[RankEnd]) -> RankEnd | None:
    """Return the most informative failure: an exception before a death, a hang and a stopped rank; None if none."""
    failed = [end for end in ends if end.kinds]
    order = {"Died": 1, "Hung": 2, "Stopped": 3}
    return min(failed, key=lambda end: order.get(end.kinds[0], 0), default=None)


def _end(folder: Path, rank: int) -> RankEnd:
    path = folder / f"end.{rank}"
    if path.exists():
        end: RankEnd = pickle.loads(path.read_bytes())
        return end
    return RankEnd(kinds=("Died",), text="the process died", trace=_log(folder, rank))


def _log(folder: Path, rank: int) -> str:
    return (folder / f"log.{rank}").read_text(errors="replace")[-2000:]


def _rank(case: Callable[[int], Any], rank: int, size: int, folder: Path, timeout: float) -> None:
    try:
        ctypes.CDLL(None).prctl(_DEATH, signal.SIGKILL)
        log = os.open(folder / f"log.{rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        end = _answer(case, rank, size, folder, timeout)
        partial = folder / f"partial.{rank}"
        partial.write_bytes(pickle.dumps(end))
        partial.rename(folder / f"end.{rank}")
    finally:
        os._exit(0)


def _answer(case: Callable[[int], Any], rank: int, size: int, folder: Path, timeout: float) -> RankEnd:
    import torch
    import torch.distributed as dist

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ["TPINIT_SWEEP_FOLDER"] = str(folder)
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(str(folder / "store"), size)
        limit = timedelta(seconds=timeout)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
        return RankEnd(case(rank))
    except Exception as error:  # the exception is the result of the rank
        kinds = tuple(kind.__name__ for kind in type(error).__mro__)
        return RankEnd(kinds=kinds, text=str(error), trace=traceback.format_exc()[-4000:])
