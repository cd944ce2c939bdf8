"""A directory of safetensors files: its headers, checked against the files, and its tensors, read slice by slice.

The files are read by `readinto`, and not by `safe_open().get_slice`, for a reason that
`PYTHONPATH=tests python -m benchmarks.safetensors_readers` measures. `safe_open` maps the file, which is faster while
the file is in the page cache; but where the file is truncated or its disk fails, the process dies of SIGBUS, and the
other ranks wait for it, where here every rank raises the same LoadError. Its mode without a mapping (`backend="pread"`,
in new releases) raises an error too, but takes about twice our time and memory for half of each matrix.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import Any

import torch
from tpinit.runtime.errors import LoadError
from tpinit.runtime.internals.host_memory import memory_of
from tpinit.runtime.loading.lazy_tensors import StoredTensor

__all__ = ["DTYPES", "INDEX", "SINGLE", "SafetensorsDir", "open_safetensors_dir", "read_json", "shorten"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000  # the format allows no more
_SHOWN_NAMES = 5


@dataclass(slots=True)
class SafetensorsDir:
    """The tensors of a directory, by stored name, and what ranks compare to see that they read the same files.

    `dtypes` are the stored dtypes by name, as the format spells them. `files` maps "checkpoint.FILE" to the file's
    length and the digest of its header. After `close` no tensor can be read.
    """

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    files: dict[str, object] = field(default_factory=dict)
    _open: dict[Path, RawIOBase] = field(default_factory=dict)
    _closed: bool = False

    def close(self) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()
        self._open.clear()
        self._closed = True

    def _read(self, path: Path, out: torch.Tensor, offset: int) -> None:
        """Fill a dense CPU tensor with the bytes of a file from `offset` on. Raises LoadError."""
        if self._closed:
            raise LoadError(f"{path} is closed: read every tensor before SafetensorsDir.close()")
        size = out.numel() * out.element_size()
        memory = memory_of(out)
        try:
            if path not in self._open:
                self._open[path] = path.open("rb", buffering=0)
            file = self._open[path]
            file.seek(offset)
            done = 0
            while done < size:
                count = file.readinto(memory[done:])
                if not count:
                    raise LoadError(f"{path} is shorter than it was when its header was read: copy or save it again")
                done += count
        except OSError as error:
            raise LoadError(f"{path} can't be read at byte {offset}: {error.strerror}") from error


def open_safetensors_dir(directory: Path) -> SafetensorsDir:
    """Read the headers of all safetensors files of a model's directory, and check them against the files.

    Raises LoadError, with all problems at once: no such directory, torch's own format, a file of the index that is
    missing, a header that can't be read, a file of another length than its header says, a tensor that is in the index
    and in no file, a tensor that is in two files.
    """
    problems: list[str] = []
    indexed = _read_index(directory)
    found = SafetensorsDir()
    for name in dict.fromkeys(indexed.values()) if indexed else [SINGLE]:
        path = directory / name
        try:
            size, digest, entries = _read_header(path)
        except (OSError, ValueError) as error:
            problems.append(f"{name}: {error.strerror if isinstance(error, OSError) else error}")
            continue
        found.files[f"checkpoint.{name}"] = f"{size} bytes, header {digest}"
        for key, (dtype, shape, begin) in entries.items():
            if key in found.tensors:
                problems.append(f"{key} is in {name} and in {found.tensors[key].file_name}")
            found.dtypes[key] = dtype
            found.tensors[key] = StoredTensor(name, shape, DTYPES[dtype], begin, partial(found._read, path))
    if not problems:
        absent = [f"{key} (of {name})" for key, name in indexed.items() if key not in found.tensors]
        if absent:
            problems.append(f"the index promises tensors that are in no file: {shorten(absent)}")
    if problems:
        raise LoadError(
            f"the checkpoint in {directory} can't be read:\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + "\n  fix: copy or save it again"
        )
    return found


def _read_index(directory: Path) -> dict[str, str]:
    """Return the file name of each stored tensor from the index; empty if one file holds all tensors."""
    if not directory.is_dir():
        raise LoadError(f"{directory} is no directory: give the one that save_pretrained wrote")
    index = directory / INDEX
    if not index.exists():
        if not (directory / SINGLE).exists():
            raise LoadError(_no_safetensors(directory))
        return {}
    try:
        files = read_json(index)["weight_map"]
        is_valid = isinstance(files, dict) and files and all(isinstance(name, str) for name in files.values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{index} can't be read: {type(error).__name__}: {error}; copy or save it again") from error
    if not is_valid or any(Path(name).name != name for name in files.values()):
        raise LoadError(f"{index}: weight_map must give a file of this directory for each tensor; save it again")
    return dict(files)


def _no_safetensors(directory: Path) -> str:
    """Return the error for a directory without safetensors files."""
    bins = sorted(path.name for path in directory.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
    if bins:
        return (
            f"{directory} holds its weights as {shorten(bins)}, which can only be read whole and can run code: save it "
            "once as safetensors, with AutoModelForCausalLM.from_pretrained(directory).save_pretrained(another)"
        )
    return f"{directory} has neither {SINGLE} nor {INDEX}: give the directory that save_pretrained wrote"


def _read_header(path: Path) -> tuple[int, str, dict[str, tuple[str, list[int], int]]]:
    """Return a file's length in bytes, its header's digest, and the dtype, shape and first byte of each tensor.

    Raises OSError for a file that can't be read, ValueError for a header that does not describe it.
    """
    if not path.is_file() and path.exists():
        raise ValueError("it is not a regular file")
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"it is truncated or no safetensors file: {size} bytes, and a header of {length}")
        raw = file.read(length)
    try:
        page = read_json(raw)
        entries = {key: entry for key, entry in page.items() if key != "__metadata__"}
        spans = sorted((entry["data_offsets"][0], entry["data_offsets"][1], key) for key, entry in entries.items())
        found = {
            key: (entry["dtype"], [int(size) for size in entry["shape"]], 8 + length + entry["data_offsets"][0])
            for key, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"its header is corrupted: {type(error).__name__}: {error}") from error
    end = 0
    for begin, stop, key in spans:
        dtype, shape, _ = found[key]
        if dtype not in DTYPES:
            raise ValueError(f"{key} has the dtype {dtype}, which tpinit does not read")
        if begin != end or min(shape, default=0) < 0 or stop - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(f"its header is corrupted: bytes {begin}:{stop} of {key} do not fit its shape {shape}")
        end = stop
    if size != 8 + length + end:
        state = "truncated" if size < 8 + length + end else "longer than that"
        raise ValueError(f"it has {size} bytes, and its header promises {8 + length + end}: it is {state}")
    return size, hashlib.sha256(raw).hexdigest()[:16], found


def read_json(source: Path | bytes) -> Any:
    """Return the data of a JSON file or text. Raises OSError for a file that can't be read, ValueError for no JSON.

    So are a pipe, data that is nested too deep for Python, and a key that an object has twice.
    """
    if isinstance(source, Path):
        if not source.is_file():
            raise ValueError("it is not a regular file")
        source = source.read_bytes()
    try:
        return json.loads(source, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add returns None
        raise ValueError(f"the key {twice[:100]!r} is there twice")
    return found


def shorten(names: Mapping[str, Any] | list[str]) -> str:
    """Return the first five names, and how many more there are, for a message."""
    every = list(names)
    more = f" and {len(every) - _SHOWN_NAMES} more" if len(every) > _SHOWN_NAMES else ""
    return ", ".join(every[:_SHOWN_NAMES]) + more
