"""Run one function over many arguments in worker processes, none of which outlives the run, however the run ends.

Ctrl-C and SIGTERM are recorded, not raised: an exception between the start of a process and its registration would lose
that process. The run looks at the record whenever a result arrives or a moment has passed, ends its workers and raises.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import NoReturn, TypeVar

__all__ = [
    "StoppedBySignal",
    "WorkerDied",
    "in_processes",
    "output_of",
    "recording_signals",
    "stop_where_asked",
    "temporary_folder",
]

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MOMENT = 0.2  # seconds between two looks at the recorded signals
_PATIENCE = 2.0  # seconds that a worker has to end its own child processes; one inside of a solver can't, and has none
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_recorded: list[int] = []


class StoppedBySignal(Exception):
    """The run was asked to end by Ctrl-C or SIGTERM. `signal` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = signal.Signals(number)


class WorkerDied(Exception):
    """A worker process ended by itself: it was killed, or ran out of memory."""


@contextmanager
def recording_signals() -> Iterator[None]:
    """Record SIGINT and SIGTERM inside this context, for `stop_where_asked`. Outside of the main thread, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _record) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _recorded.clear()


def _record(number: int, _frame: FrameType | None) -> None:
    _recorded.append(number)


def stop_where_asked() -> None:
    """Raise StoppedBySignal where a signal was recorded."""
    if _recorded:
        raise StoppedBySignal(_recorded[0])


def in_processes(call: Callable[..., T], arguments: Sequence[tuple[object, ...]], jobs: int) -> Iterator[T]:
    """Yield the result of `call(*one)` for each of the arguments as it arrives, from at most `jobs` processes.

    The processes and their own child processes are ended when the iterator is exhausted, closed, or raises. Raises
    StoppedBySignal inside of `recording_signals`, WorkerDied, and what `call` raises.
    """
    others = set(active_children())
    pool = ProcessPoolExecutor(min(jobs, len(arguments)), get_context("spawn"), _end_on_sigterm)
    try:
        waiting = _submitted(pool, call, arguments)
        while waiting:
            arrived, waiting = wait(waiting, _MOMENT, FIRST_COMPLETED)
            stop_where_asked()
            for future in arrived:
                yield future.result()
    except BaseException as problem:
        pool.shutdown(wait=False, cancel_futures=True)
        _end(set(active_children()) - others)
        if isinstance(problem, BrokenProcessPool):
            raise WorkerDied from problem
        raise
    pool.shutdown()


def _submitted(
    pool: ProcessPoolExecutor, call: Callable[..., T], arguments: Sequence[tuple[object, ...]]
) -> set[Future[T]]:
    """Submit all calls, which starts the processes. They inherit that SIGINT is blocked.

    Ctrl-C reaches every process of a terminal; the parent alone decides what it means.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return {pool.submit(call, *one) for one in arguments}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in a worker -----------------------------------------------------------------------------------------

_clean_ups: list[Callable[[], object]] = []


def _end_on_sigterm() -> None:
    """End this process on SIGTERM. An exception would not: in callbacks and destructors Python prints and drops it."""
    signal.signal(signal.SIGTERM, _clean_up_and_end)
    _die_with_parent(signal.SIGTERM)


def _die_with_parent(number: int) -> None:
    """Ask Linux to send this process a signal when its parent has ended, even by SIGKILL; elsewhere, do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _clean_up_and_end(*_: object) -> NoReturn:
    for clean_up in reversed(_clean_ups):
        with suppress(OSError):
            clean_up()
    os._exit(128 + signal.SIGTERM)


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Make a temporary folder that SIGTERM to a worker removes, too."""
    with tempfile.TemporaryDirectory(prefix=prefix) as folder, _cleaned_up_by(partial(shutil.rmtree, folder)):
        yield Path(folder)


def output_of(command: Sequence[str], seconds: float) -> str:
    """Run a command, which SIGTERM to a worker ends, too, and return what it prints to stdout and stderr.

    Raises subprocess.TimeoutExpired, after the command was ended, where it takes longer than `seconds`.
    """
    # No SIGTERM may come between the start of a process and its registration. The process inherits this; it is killed.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=partial(_die_with_parent, signal.SIGKILL),
        )
        _clean_ups.append(process.kill)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with process:
        try:
            return process.communicate(timeout=seconds)[0]
        finally:
            process.kill()
            _clean_ups.remove(process.kill)


@contextmanager
def _cleaned_up_by(clean_up: Callable[[], object]) -> Iterator[None]:
    _clean_ups.append(clean_up)
    try:
        yield
    finally:
        _clean_ups.remove(clean_up)


# --- in the parent ---------------------------------------------------------------------------------------


def _end(workers: set[BaseProcess]) -> None:
    for worker in workers:
        worker.terminate()
    until = monotonic() + _PATIENCE
    for worker in workers:
        worker.join(max(0.0, until - monotonic()))
        worker.kill()
        worker.join()
