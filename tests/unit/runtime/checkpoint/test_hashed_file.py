"""Files that are hashed while they are written: their sums, and where a tensor is in an archive of torch.save."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tpinit.runtime.checkpoint.hashed_file import HashedFile
from tpinit.runtime.errors import CheckpointError

TENSORS = [
    torch.arange(7.0),
    torch.zeros(0),
    torch.randn(600, 700).bfloat16(),  # one write of the file, hashed in a thread
    torch.tensor(True),
    torch.randn(40, 50, dtype=torch.complex64),
]


def test_the_bytes_of_each_tensor_are_where_the_archive_has_them(tmp_path: Path) -> None:
    places = []
    with HashedFile(tmp_path / "file") as file:
        for tensor in TENSORS:
            begin = file.begin_archive()
            torch.save(tensor, cast("Any", file))
            places.append((begin, file.first_byte(begin, tensor.nbytes), file.tell()))
        file.sync()
    data = (tmp_path / "file").read_bytes()
    assert hashlib.sha256(data).hexdigest() == file.sum()
    for (begin, first, end), tensor in zip(places, TENSORS, strict=True):
        assert data[first : first + tensor.nbytes] == bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())
        (tmp_path / "one").write_bytes(data[begin:end])
        assert torch.equal(torch.load(tmp_path / "one", weights_only=True), tensor)


def written(path: Path, names: list[str], method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> int:
    """Write an archive with 100 bytes in each file; return where those of the tensor begin."""
    with HashedFile(path) as file:
        begin = file.begin_archive()
        with zipfile.ZipFile(cast("Any", file), "w", method) as archive:
            for name in names:
                entry = zipfile.ZipInfo(name)
                entry.comment, entry.extra, entry.compress_type = (
                    comment,
                    b"\x99\x99\x02\x00ab" if comment else b"",
                    method,
                )
                archive.writestr(entry, b"x" * 100)
        first = file.first_byte(begin, 100)
        file.sync()
    assert path.read_bytes()[first : first + 100] == b"x" * 100
    return first


@pytest.mark.parametrize("limit", [1 << 31, 50])
def test_sizes_of_4_gib_and_more_are_read_from_their_extra_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Python writes an entry as of such a file where a size or the place of the header is over the limit."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    names = ["archive/data.pkl", "archive/data/0", "archive/version"]
    assert written(tmp_path / "comments", names, comment=b"a comment") > written(tmp_path / "file", names)
    data = (tmp_path / "file").read_bytes()
    # In the directory alone: Python 3.11.2 leaves the sizes before the files at 0, and 3.11.4 marks them too.
    assert (data[data.index(b"PK\x01\x02") :].count(b"\xff" * 8) == 3) == (limit == 50)


@pytest.mark.parametrize(
    ("names", "method"),
    [
        (["archive/data.pkl"], zipfile.ZIP_STORED),
        (["archive/data/0", "archive/data/1"], zipfile.ZIP_STORED),
        (["archive/data/0"], zipfile.ZIP_DEFLATED),
    ],
)
def test_an_archive_of_another_form_is_refused(tmp_path: Path, names: list[str], method: int) -> None:
    with pytest.raises(CheckpointError, match=r"torch\.save wrote"):
        written(tmp_path / "file", names, method)
    with HashedFile(tmp_path / "other") as file:
        begin = file.begin_archive()
        torch.save(torch.zeros(3), cast("Any", file))
        for place, size in ((begin, 16), (begin + 1, 12)):
            with pytest.raises(CheckpointError, match=r"torch\.save wrote"):
                file.first_byte(place, size)
