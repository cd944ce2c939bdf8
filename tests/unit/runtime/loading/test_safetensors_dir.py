"""A directory that someone else made: each damage of its files is one LoadError, and never a hang."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tpinit.runtime.errors import LoadError
from tpinit.runtime.loading.open_model import read_config
from tpinit.runtime.loading.safetensors_dir import INDEX, SINGLE, open_safetensors_dir

DEEP = "[" * 200_000
TWICE = '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32", "shape": [1], '
TWICE += '"data_offsets": [0, 4]}}'


def header(text: str, data: bytes = b"") -> Callable[[Path], object]:
    """Return a damage: the one file has this header and these values."""
    return lambda folder: (folder / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)


def entry(**values: object) -> Callable[[Path], object]:
    """Return a damage: the header's entry of the tensor `b`, the last in the file, has these values."""

    def damage(folder: Path) -> None:
        raw = (folder / SINGLE).read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        page = json.loads(raw[8 : 8 + length])
        page["b"].update(values)
        header(json.dumps(page), raw[8 + length :])(folder)

    return damage


def index(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / INDEX).write_text(text)


def pipe(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a long header": (lambda folder: (folder / SINGLE).write_bytes(b"\xff" * 8 + b"{}"), "truncated or no safetensors"),
    "an empty file": (lambda folder: (folder / SINGLE).write_bytes(b""), "truncated or no safetensors"),
    "a deep header": (header(DEEP), "nested too deep"),
    "a list": (header("[]"), "header is corrupted"),
    "a name that is there twice": (header(TWICE, b"\0" * 4), "the key 'a' is there twice"),
    "a pipe for the file": (pipe(SINGLE), "not a regular file"),
    "bytes outside": (entry(data_offsets=[8, 1 << 40]), "do not fit its shape"),
    "bytes that end before they begin": (entry(data_offsets=[8, -8], shape=[-4]), "do not fit its shape"),
    "a negative shape": (entry(shape=[-2, -2]), "do not fit its shape"),
    "a huge shape": (entry(shape=[1 << 40, 1 << 40]), "do not fit its shape"),
    "a text for a shape": (entry(shape="ab"), "header is corrupted"),
    "an unknown dtype": (entry(dtype="Q9"), "which tpinit does not read"),
    "dots in the index": (index('{"weight_map": {"a": "../x.safetensors"}}'), "a file of this directory"),
    "a path in the index": (index('{"weight_map": {"a": "/etc/passwd"}}'), "a file of this directory"),
    "a list for the index": (index("[]"), "can't be read"),
    "a deep index": (index(DEEP), "nested too deep"),
    "a pipe for the index": (pipe(INDEX), "not a regular file"),
}
CONFIGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (pipe("config.json"), "not a regular file"),
    "deep": (lambda folder: (folder / "config.json").write_text(DEEP), "nested too deep"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "it holds a list"),
    "twice": (lambda folder: (folder / "config.json").write_text('{"a": 1, "a": 2}'), "the key 'a' is there twice"),
    "code": (lambda folder: (folder / "config.json").write_text('{"auto_map": {}}'), "asks for code of its own"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(2.0), "b": torch.arange(4.0).view(2, 2)}, tmp_path / SINGLE)
    return tmp_path


def test_an_undamaged_directory_is_read_also_through_a_link(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "elsewhere")
    (folder / SINGLE).symlink_to(folder / "elsewhere")  # so are the files of a download cache
    found = open_safetensors_dir(folder)
    assert found.tensors.keys() == {"a", "b"}
    found.close()


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_or_index_is_one_error(name: str, folder: Path) -> None:
    damage, words = DAMAGES[name]
    damage(folder)
    with pytest.raises(LoadError) as raised:
        open_safetensors_dir(folder)
    assert words in str(raised.value)
    assert len(str(raised.value)) < 700


@pytest.mark.parametrize("name", CONFIGS)
def test_a_damaged_config_is_one_error(name: str, folder: Path) -> None:
    damage, words = CONFIGS[name]
    damage(folder)
    with pytest.raises(LoadError) as raised:
        read_config(folder)
    text: Any = str(raised.value)
    assert words in text
    assert text.count("config.json") == 1
