"""Files of several ranks that torch.distributed.checkpoint reads, without a process group."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tpinit.runtime.checkpoint.dcp_writer import DCP_INDEX, WrittenFile, check_files, index_of, write_chunks
from tpinit.runtime.checkpoint.places import Box, Write
from tpinit.runtime.errors import CheckpointError

WHOLE = {"model.a": torch.arange(12.0).view(6, 2), "model.b": torch.tensor(3, dtype=torch.int64)}


def writes(rank: int) -> list[Write]:
    """Return what a rank of two writes: a view of rows 0 and 1, or of rows 2 to 5 and a number."""
    first, last = ((0, 2), (2, 6))[rank]
    box = Box((first, 0), (last - first, 2))
    found = [Write("model.a", (6, 2), box, WHOLE["model.a"][first:last])]
    return found + ([Write("model.b", (), Box((), ()), WHOLE["model.b"])] if rank else [])


def files_of(folder: Path) -> list[WrittenFile]:
    files = [write_chunks(folder, rank, writes(rank)) for rank in range(2)]
    return [file for file in files if file is not None]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torchs_own_loader_reads_the_files_and_the_index(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    files = files_of(tmp_path)
    (tmp_path / DCP_INDEX).write_bytes(index_of(files))
    read = {"model": {"a": torch.zeros(6, 2), "b": torch.tensor(0, dtype=torch.int64)}}
    load(read, storage_reader=FileSystemReader(tmp_path), no_dist=True)
    assert torch.equal(read["model"]["a"], WHOLE["model.a"])
    assert torch.equal(read["model"]["b"], WHOLE["model.b"])


def test_what_is_said_of_a_file_is_what_it_holds(tmp_path: Path) -> None:
    for file in files_of(tmp_path):
        data = (tmp_path / file.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sum)
        for chunk in file.chunks:
            rows = slice(chunk.box.offsets[0], sum(chunk.box.offsets[:1] + chunk.box.sizes[:1])) if chunk.shape else ...
            values = WHOLE[chunk.name][rows].contiguous()
            held = torch.frombuffer(bytearray(data[chunk.first : chunk.end]), dtype=chunk.dtype, count=values.numel())
            assert torch.equal(held.view(values.shape), values)
    assert write_chunks(tmp_path, 2, []) is None


def test_tensors_with_gaps_or_of_two_kinds_are_errors(tmp_path: Path) -> None:
    first, second = files_of(tmp_path)
    assert check_files([first, second]).keys() == WHOLE.keys()
    with pytest.raises(CheckpointError, match=r"the ranks write 8 of the 12 elements of model\.a"):
        check_files([second])
    with pytest.raises(CheckpointError, match=r"the ranks write 16 of the 12 elements of model\.a"):
        check_files([first, first, second])
    for change in ({"dtype": torch.bfloat16}, {"shape": (2, 6)}):
        changed = replace(first, chunks=tuple(replace(chunk, **change) for chunk in first.chunks))  # type: ignore[arg-type]  # either field
        with pytest.raises(CheckpointError, match=r"hold model\.a with other shapes or dtypes"):
            check_files([second, changed])
