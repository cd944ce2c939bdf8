"""Thousands of damaged and forged checkpoints: each is refused by one line, or reads as the undamaged one does."""

import copy
import json
import random
import shutil

import pytest
import torch
from tpinit.runtime.checkpoint.load import fill, open_folder, verify
from tpinit.runtime.checkpoint.manifest import SUMS, Chunk, ChunkedTensor, Manifest, sha256_of
from tpinit.runtime.checkpoint.places import Box, PlacedTensor
from tpinit.runtime.checkpoint.values import decode, encode
from tpinit.runtime.errors import CheckpointError

HOSTILE = (
    None, True, -1, 0, 1, 7, 1 << 62, 1 << 64, 1e308, float("nan"), "", "..", "../../etc/passwd", "/etc/passwd",
    "a.bin", "b.bin", "object", "int64", "x" * 5000, "two\nlines", [], [[]], [1, 2], [-1], [1 << 62, 1 << 62], {},
    {"dict": 1}, {"tensor": [1, 2, 3]}, {"eval": "1"}, {"float": "x"}, {"namespace": [[1, 2]]}, {"bytes": "!"},
)  # fmt: skip
CLIENT = {
    "epoch": 3,
    "best": float("inf"),
    "names": ("a", "b"),
    "seen": {1, 2},
    "mean": torch.arange(3.0),
    "raw": b"abc",
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint of two tensors in two files: one in two chunks, one in one."""
    folder = tmp_path_factory.mktemp("fuzz") / "good"
    folder.mkdir()
    first, second = torch.arange(12, dtype=torch.float32).view(4, 3), torch.arange(5, dtype=torch.int64)
    data = {"a.bin": first[:2].numpy().tobytes() + second.numpy().tobytes(), "b.bin": first[2:].numpy().tobytes()}
    tensors = {
        "model.weight": ChunkedTensor(
            torch.float32,
            (4, 3),
            (Chunk(Box((0, 0), (2, 3)), "a.bin", 0), Chunk(Box((2, 0), (2, 3)), "b.bin", 0)),
        ),
        "model.steps": ChunkedTensor(torch.int64, (5,), (Chunk(Box((0,), (5,)), "a.bin", 24),)),
    }
    page = {"client_state": encode(CLIENT, "client_state"), "counters": {"global_steps": 3}}
    for name, content in data.items():
        (folder / name).write_bytes(content)
    write(folder, Manifest(tensors, {name: len(content) for name, content in data.items()}, page).to_bytes())
    return folder


def write(folder, manifest):
    """Write a manifest, and the right sums of all files."""
    (folder / "tpinit.json").write_bytes(manifest)
    names = [path.name for path in sorted(folder.iterdir()) if path.name != SUMS]
    (folder / SUMS).write_text("".join(f"{sha256_of([(folder / name).read_bytes()])}  {name}\n" for name in names))


def read(folder):
    """Return all that a load would take from a checkpoint."""
    opened = open_folder(folder)
    verify(opened, 0, 1)
    found = {}
    for name, stored in opened.manifest.tensors.items():
        found[name] = torch.empty(stored.shape, dtype=stored.dtype)
    fill(opened, [PlacedTensor(name, value, tuple(value.shape)) for name, value in found.items()], 0)
    client = decode(opened.manifest.page["client_state"]) if "client_state" in opened.manifest.page else None
    return {name: value.tolist() for name, value in found.items()}, client


def outcome(folder):
    """Return "read" or "refused"; every other error, and a text of more than a line, fails the test."""
    try:
        read(folder)
    except CheckpointError as error:
        text = str(error)
    else:
        return "read"
    if not 0 < len(text) < 700 or not text.isprintable():
        pytest.fail(f"no line of error: {text}")
    return "refused"


def paths(value, path=()):
    """Yield the path of every value in JSON data."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


def replaced(page, path, value):
    page = copy.deepcopy(page)
    inner = page
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return page


def test_every_value_of_a_manifest_replaced_by_every_hostile_one(good, tmp_path):
    page = json.loads((good / "tpinit.json").read_bytes())
    folder = tmp_path / "forged"
    shutil.copytree(good, folder)
    expected, tried, counts = read(good), 0, {"read": 0, "refused": 0}
    for path in [path for path in paths(page) if path]:
        for value in HOSTILE:
            tried += 1
            write(folder, json.dumps(replaced(page, path, value)).encode())
            result = outcome(folder)
            counts[result] += 1
            if result == "read" and path[0] in ("tensors", "files", "format", "version"):
                tensors, _ = read(folder)
                others = [name for name in tensors if path[:2] != ("tensors", name)]
                assert all(tensors[name] == expected[0][name] for name in others)
    assert tried == len([path for path in paths(page) if path]) * len(HOSTILE)
    assert tried > 2000
    assert counts["refused"] > tried / 2
    assert sorted(one.name for one in tmp_path.iterdir()) == ["forged"]


def test_changed_bytes_are_refused(good, tmp_path):
    dice = random.Random(0)
    folder = tmp_path / "damaged"
    for name in ("a.bin", "b.bin", "tpinit.json", SUMS):
        for _ in range(100):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(good, folder)
            data = bytearray((folder / name).read_bytes())
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            (folder / name).write_bytes(data[: dice.choice((len(data), len(data), dice.randrange(len(data))))])
            assert outcome(folder) == "refused", (name, data)


def test_changed_bytes_of_a_manifest_with_the_right_sum_do_not_raise_anything_else(good, tmp_path):
    dice = random.Random(1)
    folder = tmp_path / "forged"
    shutil.copytree(good, folder)
    whole, counts = (good / "tpinit.json").read_bytes(), {"read": 0, "refused": 0}
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 3)):
            data[dice.randrange(len(data))] = dice.choice(b'0123456789-[]{}":,. \xff\0eE')
        write(folder, bytes(data))
        counts[outcome(folder)] += 1
    assert sum(counts.values()) == 500
    assert counts["refused"] > 200
    assert outcome(good) == "read"  # the control


@pytest.mark.parametrize(
    "bomb", [b"[" * 10_000_000, b"[" + b"[]," * (1 << 23) + b"[]]", b'{"a":' * 1_000_000, b"9" * 5_000_000]
)
def test_json_bombs_are_refused(good, tmp_path, bomb):
    folder = tmp_path / "bomb"
    shutil.copytree(good, folder)
    write(folder, bomb)
    assert outcome(folder) == "refused"
