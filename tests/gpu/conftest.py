"""Worlds of ranks on GPUs, and at the end what was covered and what was not, with the reason."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu.hosts import WORLDS, GpuWorld, coverage, gpus, reason_to_skip
from support.worlds import World

_covered: dict[str, list[str]] = {}


@pytest.fixture(scope="session", params=WORLDS, ids=lambda world: world.name)
def gpu_world(request: pytest.FixtureRequest) -> Iterator[tuple[GpuWorld, World, list[str]]]:
    """Return a world, its kind, and the list of the scenarios that passed in it."""
    kind: GpuWorld = request.param
    count, description = gpus()
    reason = description if not count else reason_to_skip(kind, count)
    if reason is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="tpinit-gpu-") as folder:
        world = World(kind.ranks, Path(folder), backend=kind.backend)
        try:
            yield kind, world, _covered.setdefault(kind.name, [])
        finally:
            world.stop()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in coverage(*gpus(), _covered):
        terminalreporter.write_line(line)
