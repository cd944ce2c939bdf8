"""Worlds of real processes: started once per size, given scenarios to run, killed when one process hangs or dies."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.paths import DISTRIBUTED, TESTS

START_TIMEOUT = 120.0  # seconds, for what every process imports at once: torch first, then a module of scenarios
TIMEOUT = 60.0  # seconds, for one scenario


@dataclass
class World:
    """`size` processes in one world, of gloo or another `backend`.

    `run` has all of them run one scenario and returns their results.
    """

    size: int
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    imported: set[str] = field(default_factory=set)
    count: int = 0
    starts: int = 0
    backend: str = "gloo"

    @property
    def home(self) -> Path:
        """The folder of the present processes: their store, their logs and their results."""
        return self.folder / f"start{self.starts}"

    def start(self) -> None:
        """Start the processes and wait until all of them have joined the world."""
        self.starts += 1
        self.count = 0
        self.home.mkdir()
        for rank in range(self.size):
            command = [sys.executable, "-m", "support.worker", str(rank), str(self.size), str(self.home), self.backend]
            with (self.home / f"log.{rank}").open("wb") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=_environment(),
                    start_new_session=True,
                )
            self.processes.append(process)
        self._collect("ready", START_TIMEOUT)

    def run(self, scenario: str, timeout: float = TIMEOUT, **arguments: Any) -> list[Any]:
        """Return what the scenario "module:function" returned on each rank, in the order of the ranks.

        An exception on any rank, a rank that dies and one that is not done after `timeout` seconds fail the test.
        """
        if not self.processes:
            self.start()
        module = scenario.partition(":")[0]
        if module not in self.imported:  # apart from the scenario's own time: it may import transformers
            self._job((f"{module}:", {}), START_TIMEOUT)
            self.imported.add(module)
        return self._job((scenario, arguments), timeout)

    def _job(self, job: tuple[str, dict[str, Any]], timeout: float) -> list[Any]:
        name = f"job{self.count}"
        self.count += 1
        for process in self.processes:
            _send(process, job)
        results = self._collect(name, timeout)
        errors = [f"rank {rank}:\n{value}" for rank, (good, value) in enumerate(results) if not good]
        if errors:
            # The ranks may have stopped at different collectives: this world can't be trusted any more.
            self.kill()
            pytest.fail("\n".join(errors), pytrace=False)
        return [value for _, value in results]

    def _collect(self, name: str, timeout: float) -> list[Any]:
        deadline = time.monotonic() + timeout
        files = [self.home / f"{name}.{rank}.out" for rank in range(self.size)]
        missing = set(range(self.size))
        while missing:
            missing = {rank for rank in missing if not files[rank].exists()}
            dead = [rank for rank in missing if self.processes[rank].poll() is not None]
            if missing and (dead or time.monotonic() > deadline):
                why = f"ranks {dead} died" if dead else f"ranks {sorted(missing)} did not finish in {timeout:.0f} s"
                self.kill()
                logs = [f"--- rank {r}\n{(self.home / f'log.{r}').read_text()[-4000:]}" for r in range(self.size)]
                pytest.fail("\n".join([f"{name}: {why}", *logs]), pytrace=False)
            time.sleep(0.01)
        return [pickle.loads(file.read_bytes()) for file in files]

    def kill(self) -> None:
        """Kill the processes that this world started, and wait until they are gone."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.wait(timeout=30)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        self.processes.clear()
        self.imported.clear()

    def stop(self) -> None:
        """Ask the processes to end, and kill those that do not within 20 seconds."""
        for process in self.processes:
            _send(process, None)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes):
            time.sleep(0.02)
        self.kill()


def _environment() -> dict[str, str]:
    """Return the environment of a rank: one thread, no network, the tests' folders on the path, no launcher's words."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    path = os.pathsep.join([str(TESTS), str(DISTRIBUTED), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **inherited,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _send(process: subprocess.Popen[bytes], job: object) -> None:
    # Through a pipe, on which a worker sleeps: workers that poll a file, however rarely, keep a small machine busy.
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # the process is dead, which `_collect` reports
        pickle.dump(job, process.stdin)
        process.stdin.flush()
