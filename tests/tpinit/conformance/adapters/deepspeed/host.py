"""The client of the fork server: it starts the server under another interpreter, sends it jobs, and ends it."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tpinit.conformance

__all__ = ["PYTHON_VARIABLE", "RankServer", "ServerError"]

PYTHON_VARIABLE = "TPINIT_DEEPSPEED_PYTHON"
_START = 400.0  # seconds: the import of torch and DeepSpeed, and one small C++ build
_MARGIN = 15.0  # seconds beyond a job's own limit after which the server counts as lost


class ServerError(Exception):
    """The fork server does not start or has ended; the text has the end of its log."""


class RankServer:
    """One fork server, for one implementation, under one interpreter.

    The server and its forks run in a session of their own. Everything that they write, JIT builds included, is in a
    temporary folder that `stop` removes.
    """

    def __init__(self, implementation: str, python: str, extra_path: str = "") -> None:
        self.implementation = implementation
        self.python = python
        self.extra_path = extra_path
        self.name, self.version = implementation, ""
        self._home: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None

    def start(self) -> None:
        """Start the server and wait until it has imported the implementation. Raises ServerError if that fails."""
        self._home = tempfile.mkdtemp(prefix="tpinit-ranks-")
        self._log = Path(self._home) / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    self.python,
                    "-m",
                    "tpinit.conformance.adapters.deepspeed.ranks.server",
                    self.implementation,
                    self._home,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self._home,
                env=self._environment(self._home),
                start_new_session=True,
            )
        ready = self._line(_START)
        self.name, self.version = str(ready["name"]), str(ready["version"])

    def _environment(self, home: str) -> dict[str, str]:
        keep = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LOCAL_SIZE")}
        roots = [str(Path(next(iter(tpinit.conformance.__path__))).parent.parent), self.extra_path]
        # DeepSpeed's C++ build needs ninja, which is installed beside the interpreter.
        path = os.pathsep.join([str(Path(self.python).parent), keep.get("PATH", os.defpath)])
        return {
            **keep,
            "PYTHONPATH": os.pathsep.join(root for root in roots if root),
            "PATH": path,
            "DS_ACCELERATOR": "cpu",
            "TORCH_EXTENSIONS_DIR": str(Path(home) / "extensions"),
            "TMPDIR": home,
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Run one job in new processes and return its report. Raises ServerError if the server does not answer."""
        if self._process is None or self._process.stdin is None:
            raise ServerError("the server is not running")
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        return self._line(float(job["timeout"]) + _MARGIN)

    def _line(self, limit: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + limit
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            ready = selector.select(max(0.0, deadline - time.monotonic()))
        line = self._process.stdout.readline() if ready else b""
        if not line:
            tail = self._log.read_text(encoding="utf-8", errors="replace")[-2000:] if self._log is not None else ""
            self.stop()
            raise ServerError(f"{self.python} with {self.implementation} gave no answer in {limit:.0f} s:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End the server and its ranks, and remove their folder. May be called twice."""
        if self._process is not None:
            if self._process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(timeout=30)
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None
