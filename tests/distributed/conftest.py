"""Worlds of real processes, one of each size for all tests: a world that a test broke is started again."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from support.worlds import World

LARGE = {"world3", "world4", "world6", "worlds"}


class OneWorldEach(LoadScopeScheduling):
    """Hands tests to the processes of pytest by the worlds that they use, so that few worlds are started.

    One process has the files with the world of two ranks alone, another those with more; of others a file stays whole.
    pytest-xdist's own groups (`--dist loadgroup`) have no effect with pytest 9: it marks them in a name that is gone.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        words = _words_of(self.config.rootpath / path)
        return "more ranks" if words & LARGE else "two ranks" if "world2" in words else path


@cache
def _words_of(path: Path) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", path.read_text(encoding="utf-8")))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Let pytest-xdist use the class above; it asks only where it distributes tests."""
    return OneWorldEach(config, log)


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
