"""Writing with torch.distributed.checkpoint: its planner and storage, with our chunks and the places of their bytes."""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
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
from tpinit.runtime.checkpoint.manifest import Chunk, ChunkedTensor, sha256_of_file
from tpinit.runtime.checkpoint.places import Box, Write
from tpinit.runtime.errors import CheckpointError

__all__ = ["ChunkPlanner", "ChunkWriter"]

_SECONDS = 5.0  # between two lines about the progress
_log = logging.getLogger("tpinit")


class ChunkPlanner(SavePlanner):
    """Gives torch.distributed.checkpoint the boxes that this rank writes, under the names of the whole tensors."""

    def __init__(self, writes: Sequence[Write]) -> None:
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
        values = self._writes[write_item.index].values.detach().contiguous()
        if time.monotonic() - self._shown > _SECONDS:
            self._shown = time.monotonic()
            _log.info("saving: %.1f of %.1f MB of this rank are written", self._written / 1e6, self._total / 1e6)
        self._written += values.numel() * values.element_size()
        return values


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
    """Writes one file per rank. On the first rank, `tensors`, `files` and `sums` describe all files afterwards."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
        self.tensors: dict[str, ChunkedTensor] = {}
        self.files: dict[str, int] = {}
        self.sums: dict[str, str] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's chunks, and return where each is."""
        if not plan.items:
            done: Future[list[WriteResult]] = Future()
            done.set_result([])
            return done
        results = super().write_data(plan, planner).wait()
        items = {item.index: item for item in plan.items}
        name = results[0].storage_data.relative_path
        path = Path(self.path) / name
        with path.open("rb") as file:
            file_sum = sha256_of_file(file)
            size = path.stat().st_size
            found = [
                dataclasses.replace(result, storage_data=_stored(file, items[result.index], result, size, file_sum))
                for result in results
            ]
        done = Future()
        done.set_result(found)
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


def _stored(file: io.BufferedReader, item: WriteItem, result: WriteResult, size: int, file_sum: str) -> _Stored:
    data, record = item.tensor_data, result.storage_data
    assert data is not None
    box = Box(tuple(data.chunk.offsets), tuple(data.chunk.sizes))
    count = box.count * data.properties.dtype.itemsize
    begin = record.offset + _first_byte(_Slice(file, record.offset, record.length), count)
    return _Stored(
        record, Chunk(box, record.relative_path, begin), data.properties.dtype, tuple(data.size), size, file_sum
    )


def _first_byte(archive: _Slice, count: int) -> int:
    """Return where the one storage of a tensor that torch.save wrote begins; `count` is its size in bytes."""
    with zipfile.ZipFile(archive) as names:
        (storage,) = [entry for entry in names.infolist() if "/data/" in f"/{entry.filename}"]
    if storage.file_size != count or storage.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"torch.save wrote {storage.file_size} bytes for a tensor of {count}")
    archive.seek(storage.header_offset + 26)
    lengths = archive.read(4)
    return storage.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")


class _Slice(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: io.BufferedReader, offset: int, length: int) -> None:
        self._file = file
        self._offset = offset
        self._length = length
        self._place = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        self._place = base + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._length - self._place))
        self._file.seek(self._offset + self._place)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)
