"""Worlds of real processes, one of each size for all tests: a world that a test broke is started again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.worlds import World

LARGE = {"world3", "world4", "world6", "worlds"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group the tests for `--dist loadgroup`: two processes of pytest run them, and each world is started once.

    One group has the world of two ranks, another those of more. Of a file without a world the tests stay together.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        fixtures = {*getattr(item, "fixturenames", ())}
        group = "more ranks" if fixtures & LARGE else "two ranks" if "world2" in fixtures else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


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
