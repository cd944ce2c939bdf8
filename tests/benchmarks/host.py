"""The processes of one peer's ranks: start them, send them commands, receive replies, end them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.roster import PeerSpec

__all__ = ["RanksLost", "RankProcesses"]


class RanksLost(Exception):
    """The peer can't continue; the text is the reason, without folders of this machine."""


class RankProcesses:
    """The processes of one peer, each in a session of its own, so that `kill` ends its children too."""

    def __init__(self, peer: PeerSpec, home: Path) -> None:
        self.peer = peer
        self.home = home
        self.processes: list[subprocess.Popen[bytes]] = []
        python = os.environ.get(peer.wants, "") if peer.wants else sys.executable
        if not python:
            raise RanksLost(f"{peer.wants} is not set; it must name the peer's Python interpreter")
        if not Path(python).exists():
            raise RanksLost(f"{peer.wants} names an interpreter that does not exist")
        try:
            self._start(python)
        except BaseException:
            self.kill()
            raise

    def _start(self, python: str) -> None:
        for rank in range(self.peer.ranks):
            with (self.home / f"{self.peer.name}.{rank}.log").open("wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        [python, "-m", "benchmarks.rank", self.peer.code, str(rank), str(self.peer.ranks), self.home],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        cwd=self.home,
                        env=self._environment(rank, python),
                        start_new_session=True,
                    )
                )

    def _environment(self, rank: int, python: str) -> dict[str, str]:
        keep = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LOCAL_SIZE")}
        return {
            **keep,
            # Only the folder of this package: a peer with its own interpreter must not import tpinit.
            "PYTHONPATH": os.pathsep.join(
                folder for folder in (str(self.home / "path"), os.environ.get(self.peer.path)) if folder
            ),
            "PATH": os.pathsep.join([str(Path(python).parent), keep.get("PATH", os.defpath)]),
            "TMPDIR": str(self.home),
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.peer.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "1",  # unused: the ranks rendezvous through a file
        }

    def ask(self, limit: float, **command: Any) -> list[dict[str, Any]]:
        """Send every rank the command and return their replies. If one fails, end all and raise RanksLost."""
        self.send(**command)
        return self.receive(limit)

    def send(self, **command: Any) -> None:
        """Send every rank the command without waiting for replies."""
        for process in self.processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # `receive` reports a process that has ended
                process.stdin.write(json.dumps(command).encode() + b"\n")
                process.stdin.flush()

    def receive(self, limit: float) -> list[dict[str, Any]]:
        """Return every rank's reply to the last command within `limit` seconds. Raises RanksLost."""
        deadline = time.monotonic() + limit
        answers: dict[int, dict[str, Any]] = {}
        with selectors.DefaultSelector() as selector:
            for rank, process in enumerate(self.processes):
                assert process.stdout is not None
                selector.register(process.stdout, selectors.EVENT_READ, rank)
            while len(answers) < len(self.processes):
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    self.fail(f"no answer in {limit:.0f} s")
                for key, _ in ready:
                    line = self.processes[key.data].stdout.readline()
                    answer = json.loads(line) if line else {"error": self._last_log_line(key.data)}
                    if "error" in answer:
                        # The other rank may wait for this one in a collective, so neither can continue.
                        self.fail(answer["error"])
                    answers[key.data] = answer
                    selector.unregister(key.fileobj)
        return [answers[rank] for rank in range(len(self.processes))]

    def _last_log_line(self, rank: int) -> str:
        log = (self.home / f"{self.peer.name}.{rank}.log").read_text(encoding="utf-8", errors="replace")
        lines = [line for line in log.splitlines() if line.strip()]
        return f"rank {rank} ended: {lines[-1] if lines else 'its log is empty'}"

    def fail(self, reason: str) -> None:
        """End the ranks and raise RanksLost."""
        self.kill()
        raise RanksLost(plain(reason))

    def kill(self) -> None:
        """Kill the processes and wait for their end. May be called twice."""
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.wait(timeout=30)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        self.processes.clear()


def plain(text: str) -> str:
    """Return the first line of an error, shortened to 240 characters and without folders."""
    line = next((line for line in text.splitlines() if line.strip()), "no reason given")
    return re.sub(r"(?:/[\w.@+-]+){2,}/?", "(a path)", line)[:240]
