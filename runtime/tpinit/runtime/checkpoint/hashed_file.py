"""A new file that is hashed while it is written, and archives of torch.save in it."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from tpinit.runtime.errors import CheckpointError

__all__ = ["HashedFile"]

_LARGE = 1 << 20  # bytes of one write, from which on hashing beside it is worth a thread


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
        headers = _Headers(self._small, begin, self._place)
        with zipfile.ZipFile(headers) as archive:
            (storage,) = [entry for entry in archive.infolist() if "/data/" in f"/{entry.filename}"]
        if storage.file_size != count or storage.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"torch.save wrote {storage.file_size} bytes for a tensor of {count}")
        headers.seek(storage.header_offset + 26)
        name, extra = struct.unpack("<HH", headers.read(4))
        return begin + int(storage.header_offset) + 30 + int(name) + int(extra)

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


class _Headers(io.RawIOBase):
    """An archive as a file, of which only the small writes are known: the rest, which nobody reads, is zeros."""

    def __init__(self, pieces: Sequence[tuple[int, bytes]], begin: int, end: int) -> None:
        self._pieces = [(place - begin, data) for place, data in pieces]
        self._size = end - begin
        self._place = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._place))
        end = self._place + count
        found = bytearray(count)
        for place, data in self._pieces:
            first, last = max(place, self._place), min(place + len(data), end)
            if first < last:
                found[first - self._place : last - self._place] = data[first - place : last - place]
        buffer[:count] = found
        self._place = end
        return count
