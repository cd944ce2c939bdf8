"""A save that is killed or fails leaves the last checkpoint and `latest` as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

# The point at which a rank is killed, the tag of the save that is interrupted, and the updates of what is found after.
KILLS = [
    ("written", "second", 1),
    ("manifest", "second", 1),
    ("between the renames", "first", 1),
    ("in place", "second", 1),
    ("in place", "first", 2),
]


@pytest.mark.parametrize(("point", "second", "updates"), KILLS)
def test_a_kill_leaves_the_last_checkpoint(
    fresh_world: Any, world2: Any, tmp_path: Path, point: str, second: str, updates: int
) -> None:
    folder = str(tmp_path / "run")
    with pytest.raises(pytest.fail.Exception, match="rank"):
        fresh_world(2).run("scenarios.interrupted_saves:killed", folder=folder, point=point, second=second)
    for result in world2.run("scenarios.interrupted_saves:recover", folder=folder, second=second):
        assert result["latest"] == "first"
        assert result["path"] == (".first.replaced" if point == "between the renames" else "first")
        assert result["found"] == updates
        assert result["later"] == updates + 4
        assert result["different"] == []
        assert result["names"] == sorted({"first", "latest", second})
        assert result["in_step"]


def test_a_full_disk_on_one_rank_is_an_error_on_all(world2: Any, tmp_path: Path) -> None:
    for result in world2.run("scenarios.interrupted_saves:fails", folder=str(tmp_path)):
        assert [error["type"] for error in result["errors"]] == ["CheckpointError"] * 3
        assert all("No space left on device" in error["text"] for error in result["errors"])
        assert "rank 1" in result["errors"][0]["text"]
        assert result["names"] == ["good", "latest"]
        assert result["latest"] == "next"
        assert result["in_step"]


def test_a_save_in_the_background_holds_what_was_when_it_began(world2: Any, tmp_path: Path) -> None:
    for result in world2.run("scenarios.interrupted_saves:background", folder=str(tmp_path)):
        assert result["running"]
        assert result["waited"]
        assert result["different"] == []
        assert result["names"] == ["c", "d", "e", "latest"]
        assert result["in_step"]
