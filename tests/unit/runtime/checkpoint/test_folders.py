"""Files of torch.save on a disk that is full at any of their bytes."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from tpinit.runtime.checkpoint.folders import write_archive


def test_a_full_disk_is_an_error_of_the_disk_at_every_byte(tmp_path: Path) -> None:
    state = {name: torch.randn(9000) for name in "abc"}  # larger than the buffer of a file
    write_archive(tmp_path / "whole", state)
    size = (tmp_path / "whole").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (*range(0, size, 4870), *range(size - 3000, size, 61), size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                write_archive(tmp_path / "part", state)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(torch.load(tmp_path / "whole", weights_only=True)["c"], state["c"])
    with pytest.raises(OSError, match="No such file"):
        write_archive(tmp_path / "nowhere" / "file", state)
