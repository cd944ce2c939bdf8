"""A save that is killed or fails leaves the last checkpoint and `latest` as they were."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
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


def test_a_rank_that_cannot_write_is_an_error_on_all(world2: Any, tmp_path: Path) -> None:
    for result in world2.run("scenarios.interrupted_saves:fails", folder=str(tmp_path)):
        assert [error["type"] for error in result["errors"]] == ["CheckpointError"] * 5
        assert all("File too large" in error["text"] for error in result["errors"][:4])
        assert "rank 1" in result["errors"][0]["text"]
        assert "latest" in result["errors"][4]["text"]
        assert result["names"] == ["good", "latest"]
        assert result["latest"] == "next"
        assert result["in_step"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a full disk needs the right to mount one: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_and_a_read_only_disk_lose_nothing(world2: Any, disk: Path) -> None:
    for result in world2.run("scenarios.interrupted_saves:fills", folder=str(disk)):
        saved = result["cases"].pop(1)  # the control: with room for a checkpoint and `latest`
        assert (saved["type"], saved["latest"]) == (None, "bad")
        for missing, case in result["cases"].items():
            assert case["type"] == "CheckpointError", missing
            assert "No space left on device" in case["text"]
            assert "\n" not in case["text"]
            assert case["latest"] == "good"
            assert case["names"] == (["bad"] if missing == 0 else []) + ["filler", "good", "latest"]
        for error in result["full"].values():
            assert "No space left on device" in error["text"]
        assert result["left"] == []
        assert result["mounted"] == ""
        for error in result["read-only"].values():
            assert "Read-only file system" in error["text"]
        assert result["different"] == []
        assert result["in_step"]


def test_a_save_in_the_background_holds_what_was_when_it_began(world2: Any, tmp_path: Path) -> None:
    for result in world2.run("scenarios.interrupted_saves:background", folder=str(tmp_path)):
        assert result["running"]
        assert result["waited"]
        assert result["different"] == []
        assert result["names"] == ["c", "d", "e", "latest"]
        assert result["in_step"]
