"""Starts the ranks of `tpinit train` on this machine, and ends all of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

__all__ = ["die_with_launcher", "launch"]

_LAUNCHER = "TPINIT_TRAIN_LAUNCHER"  # the environment variable with the launcher's process id
_WAIT = 30.0  # seconds that the other ranks have after one has failed: they may be saying why, or saving
_PAUSE = 0.05  # seconds between two looks at the ranks
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `tpinit train` with these arguments on each of so many ranks. Return the exit code of rank 0.

    Another rank that fails makes it 1. Ctrl-C and SIGTERM reach every rank, which ends after its update; a second one
    kills them: the exit code is then 128 + its number. No process is left in any case.
    """
    environment = {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        _LAUNCHER: str(os.getpid()),
    }
    command = [sys.executable, "-m", "tpinit.cli.main", "train", *arguments]
    sys.stdout.flush()
    ranks = _Ranks()
    with ranks:
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # In a session of its own, so that Ctrl-C on the terminal reaches this process alone, which passes it on.
            ranks.processes.append(
                subprocess.Popen(command, env={**environment, **own}, stdin=subprocess.DEVNULL, start_new_session=True)
            )
        return ranks.wait()


class _Ranks:
    """The processes of a run. At the end of the `with` block none is left."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.received: list[int] = []
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Ranks:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._send(signal.SIGKILL)
        for process in self.processes:
            process.wait()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def wait(self) -> int:
        """Wait until every rank has ended, and return the exit code of the command."""
        failed_at: float | None = None
        while any(process.poll() is None for process in self.processes):
            if len(self.received) > 1:
                return 128 + self.received[0]
            if failed_at is None and any(process.poll() for process in self.processes):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > _WAIT:
                break
            time.sleep(_PAUSE)
        codes = [process.poll() for process in self.processes]
        for rank, code in enumerate(codes):
            if code is not None and code < 0 and not self.received:
                print(f"tpinit: error: rank {rank} was ended by {signal.Signals(-code).name}", file=sys.stderr)
        if self.received:
            return codes[0] if codes[0] is not None and codes[0] > 0 else 128 + self.received[0]
        if codes[0] is not None and codes[0] > 0:
            return codes[0]
        return int(any(codes) or None in codes)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received.append(number)
        if len(self.received) == 1:
            self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


def die_with_launcher() -> None:
    """Let the kernel kill this rank when the process that started it is gone; does nothing without a launcher."""
    launcher = os.environ.get(_LAUNCHER)
    if launcher is None or sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it ended before the line above
        os.kill(os.getpid(), signal.SIGKILL)


def _free_port() -> int:
    """Return a port that is free now. Another program may take it before rank 0 does, which rank 0 then says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
