"""Files of torch.save on a disk that is full at any of their bytes."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tpinit.runtime.checkpoint.folders import save_archive, write_archive
from tpinit.runtime.checkpoint.hashed_file import HashedFile


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Let no file of this process grow over so many bytes, and expect the error of one that would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_of_the_disk_at_every_byte(tmp_path: Path) -> None:
    state = {name: torch.randn(9000) for name in "abc"}  # larger than the buffer of a file
    write_archive(tmp_path / "whole", state)
    size = (tmp_path / "whole").stat().st_size
    for limit in (*range(0, size, 4870), *range(size - 3000, size, 61), size - 1):
        with limited(limit):
            write_archive(tmp_path / "part", state)
    assert torch.equal(torch.load(tmp_path / "whole", weights_only=True)["c"], state["c"])
    with pytest.raises(OSError, match="No such file"):
        write_archive(tmp_path / "nowhere" / "file", state)


def test_so_it_is_where_a_checkpoint_is_hashed_while_it_is_written(tmp_path: Path) -> None:
    large = torch.randn(3 << 18)  # 3 MiB: hashed in a thread beside one write
    for limit in (1000, 1 << 20, 3 << 20):
        with HashedFile(tmp_path / f"limit {limit}") as file, limited(limit):
            file.begin_archive()
            save_archive(large, file)
            file.sync()
