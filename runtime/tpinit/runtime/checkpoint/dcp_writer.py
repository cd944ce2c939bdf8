"""Writing with torch.distributed.checkpoint: its planner and storage, with our chunks and the places of their bytes."""

from __future__ import annotations

import dataclasses
import io
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import DEFAULT_SUFFIX, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future
from tpinit.runtime.checkpoint.folders import save_archive
from tpinit.runtime.checkpoint.hashed_file import HashedFile
from tpinit.runtime.checkpoint.manifest import Chunk, ChunkedTensor
from tpinit.runtime.checkpoint.places import Box, Write
from tpinit.runtime.errors import CheckpointError
from tpinit.runtime.internals.state_dict_private import place_in_file

__all__ = ["ChunkPlanner", "ChunkWriter"]

_SECONDS = 5.0  # between two lines about the progress
_log = logging.getLogger("tpinit")


class ChunkPlanner(SavePlanner):
    """Gives torch.distributed.checkpoint the boxes that this rank writes, under the names of the whole tensors.

    `read` returns the values of a box when they are written; without it they are those of the box.
    """

    def __init__(self, writes: Sequence[Write], read: Callable[[Write], torch.Tensor] | None = None) -> None:
        self._read = read if read is not None else _values
        self._writes = {MetadataIndex(write.name, write.box.offsets): write for write in writes}
        self._total = sum(write.values.numel() * write.values.element_size() for write in writes)
        self._written = 0
        self._shown = time.monotonic()

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        """Do nothing: the writes were given."""

    def create_local_plan(self) -> SavePlan:
        """Return an item for each box."""
        return SavePlan([_item(index, write) for index, write in self._writes.items()])

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Return the plans as they are, and the index of all tensors. Raises CheckpointError for gaps."""
        tensors: dict[str, TensorStorageMetadata] = {}
        for item in (item for plan in all_plans for item in plan.items):
            data = item.tensor_data
            assert data is not None
            entry = tensors.setdefault(item.index.fqn, TensorStorageMetadata(data.properties, data.size, []))
            if entry.size != data.size or entry.properties.dtype != data.properties.dtype:
                raise CheckpointError(f"the ranks hold {item.index.fqn} with other shapes or dtypes")
            entry.chunks.append(data.chunk)
        for name, entry in tensors.items():
            held = sum(Box(tuple(chunk.offsets), tuple(chunk.sizes)).count for chunk in entry.chunks)
            if held != entry.size.numel():
                raise CheckpointError(f"the ranks write {held} of the {entry.size.numel()} elements of {name}")
        paths = {name: tuple(name.split(".", 1)) for name in tensors}
        return all_plans, Metadata(dict(tensors), planner_data=paths)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """Return the plan."""
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        """Return the values of a box, contiguous; say every few seconds how far this rank is."""
        values = self._read(self._writes[write_item.index]).detach().contiguous()
        if time.monotonic() - self._shown > _SECONDS:
            self._shown = time.monotonic()
            _log.info("saving: %.1f of %.1f MB of this rank are written", self._written / 1e6, self._total / 1e6)
        self._written += values.numel() * values.element_size()
        return values


def _values(write: Write) -> torch.Tensor:
    return write.values


def _item(index: MetadataIndex, write: Write) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size(write.box.offsets), torch.Size(write.box.sizes))
    data = TensorWriteData(chunk, TensorProperties(dtype=write.values.dtype), torch.Size(write.shape))
    return WriteItem(index, WriteItemType.SHARD, tensor_data=data)


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where one chunk was written: DCP's own record, the chunk's first byte, and its file's size and SHA-256."""

    record: Any
    chunk: Chunk
    dtype: torch.dtype
    shape: tuple[int, ...]
    file_size: int
    file_sum: str


class ChunkWriter(FileSystemWriter):
    """Writes one file per rank. On the first rank, `tensors`, `files` and `sums` describe all files afterwards.

    A file is hashed while it is written. torch's own loop would hold what it made for the file (contiguous copies of
    slices, copies on the CPU) until the file is complete; here one tensor is held at a time.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
        self.tensors: dict[str, ChunkedTensor] = {}
        self.files: dict[str, int] = {}
        self.sums: dict[str, str] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's chunks, and return where each is."""
        results: list[WriteResult] = []
        if plan.items:
            assert plan.storage_data is not None
            name = f"{plan.storage_data.prefix}0{DEFAULT_SUFFIX}"
            with HashedFile(Path(self.path) / name) as file:
                places = [_write(file, planner.resolve_data(item)) for item in plan.items]
                file.sync()
                results = [_result(item, name, place, file) for item, place in zip(plan.items, places, strict=True)]
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write DCP's index, and keep what the manifest needs."""
        for result in (result for of_rank in results for result in of_rank):
            stored: _Stored = result.storage_data
            name, chunk = result.index.fqn, stored.chunk
            before = self.tensors.get(name)
            chunks = (*(before.chunks if before is not None else ()), chunk)
            self.tensors[name] = ChunkedTensor(stored.dtype, stored.shape, chunks)
            self.files[chunk.file], self.sums[chunk.file] = stored.file_size, stored.file_sum
        plain = [
            [dataclasses.replace(result, storage_data=result.storage_data.record) for result in of_rank]
            for of_rank in results
        ]
        super().finish(metadata, plain)


def _write(file: HashedFile, values: torch.Tensor | io.BytesIO) -> tuple[int, int, int]:
    """Write a tensor as torch.save does; return where this begins, where the tensor's own bytes begin, and the end."""
    assert isinstance(values, torch.Tensor)
    values = values.cpu()
    if values.untyped_storage().nbytes() != values.nbytes:
        values = values.clone()  # torch.save writes the whole storage of a view
    begin = file.begin_archive()
    save_archive(values, file)
    return begin, file.first_byte(begin, values.nbytes), file.tell()


def _result(item: WriteItem, name: str, place: tuple[int, int, int], file: HashedFile) -> WriteResult:
    data, (begin, first, end) = item.tensor_data, place
    assert data is not None
    box = Box(tuple(data.chunk.offsets), tuple(data.chunk.sizes))
    stored = _Stored(
        place_in_file(name, begin, end - begin), Chunk(box, name, first), data.properties.dtype, tuple(data.size),
        file.tell(), file.sum(),
    )  # fmt: skip
    return WriteResult(item.index, end - begin, stored)
