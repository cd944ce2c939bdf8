"""A new file that is hashed while it is written, and archives of torch.save in it."""

from __future__ import annotations

import hashlib
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from tpinit.runtime.errors import CheckpointError

__all__ = ["HashedFile"]

_LARGE = 1 << 20  # bytes of one write, from which on hashing beside it is worth a thread
_HEADER = b"PK\3\4"  # begins each file of a ZIP archive
_INDEX = b"PK\1\2"  # begins each entry of the index of a ZIP archive
# The method, both sizes, the lengths of the name, the extra fields and the comment, and where the file's header is.
_FIELDS = struct.Struct("<10xH8xIIHHH8xI")
_FAR = 0xFFFFFFFF


class HashedFile:
    """A file for torch.save, open for writing. Large writes are hashed in a thread while they are written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._waiting = bytearray()  # small writes that are neither hashed nor written yet
        self._hash = hashlib.sha256()
        self._place = 0
        self._small: list[tuple[int, bytes]] = []  # since `begin_archive`: the headers of the archive are among them
        self._hasher = ThreadPoolExecutor(1, "tpinit checkpoint")

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hasher.shutdown()
        self._file.close()

    def write(self, data: Any) -> int:
        """Write bytes, which must not change until this returns; return their number."""
        size = memoryview(data).nbytes
        if size < _LARGE:
            self._small.append((self._place, bytes(data)))
            self._waiting += data
            if len(self._waiting) >= _LARGE:
                self._flush()
        else:
            self._flush()
            hashed = self._hasher.submit(self._hash.update, data)
            try:
                self._write_all(memoryview(data))
            finally:
                hashed.result()
        self._place += size
        return size

    def _flush(self) -> None:
        self._hash.update(self._waiting)
        self._write_all(memoryview(bytes(self._waiting)))
        self._waiting.clear()

    def _write_all(self, data: memoryview) -> None:
        while len(data):
            data = data[self._file.write(data) :]

    def begin_archive(self) -> int:
        """Return the place at which an archive of torch.save will begin."""
        self._small.clear()
        return self._place

    def first_byte(self, begin: int, count: int) -> int:
        """Return where the bytes of the one tensor are in the archive that was written from `begin` on.

        `count` is their number. Raises CheckpointError if torch.save wrote something else.
        """
        first = next((place for place, data in self._small if data.startswith(_INDEX)), self._place)
        index = b"".join(data for place, data in self._small if place >= first)
        found = [entry for entry in _entries(index) if "/data/" in entry.name]
        headers = {place: data for place, data in self._small if data.startswith(_HEADER)}
        if [(one.method, one.stored, one.size, begin + one.header in headers) for one in found] != [
            (0, count, count, True)
        ]:
            raise CheckpointError(f"torch.save wrote {found} for a tensor of {count} bytes")
        header = begin + found[0].header
        name, extra = struct.unpack_from("<HH", headers[header], 26)
        return header + 30 + int(name) + int(extra)

    def tell(self) -> int:
        """Return the number of bytes that were written."""
        return self._place

    def flush(self) -> None:
        """Do nothing: `sync` writes what waits. torch.save calls this at the end of an archive."""

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        self._flush()
        os.fsync(self._file.fileno())

    def sum(self) -> str:
        """Return the SHA-256 of all that was synced, as hex digits."""
        return self._hash.hexdigest()


class _Entry(NamedTuple):
    """What the index of a ZIP archive says of one file: its sizes in bytes, and where its header begins."""

    name: str
    method: int
    stored: int
    size: int
    header: int


def _entries(index: bytes) -> list[_Entry]:
    """Return the entries of the index of an archive. Python's `zipfile` would take as long as torch.save itself."""
    found, place = [], 0
    while index.startswith(_INDEX, place):
        method, stored, size, *lengths, header = _FIELDS.unpack_from(index, place)
        begin = place + _FIELDS.size
        ends = [begin + sum(lengths[:count]) for count in (1, 2, 3)]
        far = (size, stored, header).count(_FAR)  # numbers of 4 GiB and more are in an extra field, in this order
        longs = iter(struct.unpack_from(f"<{far}Q", index, ends[0] + 4)) if far else iter(())
        size, stored, header = (next(longs) if number == _FAR else number for number in (size, stored, header))
        found.append(_Entry(index[begin : ends[0]].decode(), method, stored, size, header))
        place = ends[2]
    return found
