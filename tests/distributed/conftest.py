"""Worlds of real processes: started once per size, fed scenarios, killed when one of them hangs."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
START_TIMEOUT = 120.0  # seconds, for importing torch and transformers in every process at once
TIMEOUT = 60.0  # seconds, for one scenario


@dataclass
class World:
    """`size` processes in one gloo world. `run` sends all of them one scenario and collects what they return."""

    size: int
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    count: int = 0
    starts: int = 0

    def start(self) -> None:
        self.starts += 1
        self.count = 0
        home = self.folder / f"start{self.starts}"
        home.mkdir()
        for rank in range(self.size):
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "HF_HUB_OFFLINE": "1",
                "PYTHONUNBUFFERED": "1",
            }
            for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
                environment.pop(name, None)
            with (home / f"log.{rank}").open("wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, str(HERE / "worker.py"), str(rank), str(self.size), str(home)],
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,
                    )
                )
        self._collect(home, "ready", START_TIMEOUT)

    def run(self, scenario: str, timeout: float = TIMEOUT, **arguments: Any) -> list[Any]:
        """Return what the scenario returned on each rank. An exception there fails the test here."""
        if not self.processes:
            self.start()
        home = self.folder / f"start{self.starts}"
        name = f"job{self.count}"
        self.count += 1
        for process in self.processes:
            _tell(process, (scenario, arguments))
        results = self._collect(home, name, timeout)
        errors = [f"rank {rank}:\n{value}" for rank, (good, value) in enumerate(results) if not good]
        if errors:
            # The ranks may have stopped at different collectives: this world can't be trusted any more.
            self.kill()
            pytest.fail("\n".join(errors), pytrace=False)
        return [value for _, value in results]

    def _collect(self, home: Path, name: str, timeout: float) -> list[Any]:
        deadline = time.monotonic() + timeout
        missing = set(range(self.size))
        while missing:
            missing = {rank for rank in missing if not (home / f"{name}.{rank}.out").exists()}
            dead = [rank for rank in missing if self.processes[rank].poll() is not None]
            if missing and (dead or time.monotonic() > deadline):
                why = f"ranks {dead} died" if dead else f"ranks {sorted(missing)} did not finish in {timeout:.0f} s"
                self.kill()
                logs = "\n".join(f"--- rank {r}\n{(home / f'log.{r}').read_text()[-4000:]}" for r in range(self.size))
                pytest.fail(f"{name}: {why}\n{logs}", pytrace=False)
            time.sleep(0.01)
        return [pickle.loads((home / f"{name}.{rank}.out").read_bytes()) for rank in range(self.size)]

    def kill(self) -> None:
        """End the processes that this world started, and wait until they are gone."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.wait(timeout=30)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        self.processes.clear()

    def stop(self) -> None:
        """Ask the processes to end; whoever does not is killed."""
        for process in self.processes:
            _tell(process, None)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and any(process.poll() is None for process in self.processes):
            time.sleep(0.02)
        self.kill()


def _tell(process: subprocess.Popen[bytes], job: object) -> None:
    # By a pipe, on which a worker sleeps: many that look for a file, however rarely, keep a small machine busy.
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it is dead, which whoever waits for its answer sees
        pickle.dump(job, process.stdin)
        process.stdin.flush()


def _world(size: int) -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="tpinit-world-") as folder:
        world = World(size, Path(folder))
        try:
            yield world
        finally:
            world.stop()
            assert not world.processes


@pytest.fixture(scope="session")
def world2() -> Iterator[World]:
    yield from _world(2)


@pytest.fixture(scope="session")
def world3() -> Iterator[World]:
    yield from _world(3)


@pytest.fixture(scope="session")
def world4() -> Iterator[World]:
    yield from _world(4)


@pytest.fixture(scope="module")
def world6() -> Iterator[World]:
    """Of a module alone: six processes that wait still take memory."""
    yield from _world(6)


@pytest.fixture(scope="session")
def worlds(world2: World, world4: World) -> dict[int, World]:
    return {2: world2, 4: world4}


@pytest.fixture
def fresh_world(tmp_path: Path) -> Iterator[Any]:
    """A maker of worlds of its own, for scenarios that break theirs."""
    made: list[World] = []

    def make(size: int) -> World:
        folder = tmp_path / f"world{len(made)}"
        folder.mkdir()
        made.append(World(size, folder))
        return made[-1]

    yield make
    for world in made:
        world.kill()
