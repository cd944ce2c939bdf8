"""Checkpoints that are damaged, forged or of another run: loaded by an engine that must stay as it was."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime.checkpoint.manifest import SUMS, sha256_of

from scenarios.save_load import SGD, differing, engine, held, train
from support.refusals import error_of, in_step

NAME = "model.lm_head.weight"


def _forge(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and its sum with it."""
    page = json.loads((folder / "tpinit.json").read_text())
    change(page)
    _write(folder, json.dumps(page).encode())


def _write(folder: Path, manifest: bytes) -> None:
    (folder / "tpinit.json").write_bytes(manifest)
    lines = [line for line in (folder / SUMS).read_text().splitlines() if not line.endswith("  tpinit.json")]
    (folder / SUMS).write_text("\n".join([*lines, f"{sha256_of([manifest])}  tpinit.json"]) + "\n")


def _data(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.distcp"))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _swap(folder: Path) -> None:
    first, second = _data(folder)
    first.rename(folder / "other")
    second.rename(first)
    (folder / "other").rename(second)


def _pickled(folder: Path) -> None:
    _data(folder)[0].write_bytes(pickle.dumps(_Evil(folder.parent / "ran")))


def _linked(folder: Path) -> None:
    path = _data(folder)[0]
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")


def _fifo(folder: Path) -> None:
    _data(folder)[0].unlink()
    os.mkfifo(_data_name(folder))


def _data_name(folder: Path) -> Path:
    return folder / "__0_0.distcp"


def _chunk(page: dict[str, Any]) -> dict[str, Any]:
    chunk: dict[str, Any] = page["tensors"][NAME]["chunks"][0]
    return chunk


def _options(page: dict[str, Any]) -> Any:
    return _Pairs(page["optimizer"]["groups"][0]["options"]["dict"])


def _schedule(page: dict[str, Any]) -> list[Any]:
    pairs: list[Any] = page["scheduler"]["state"]["dict"]
    return pairs


class _Pairs:
    """The pairs of a dict in a manifest, to be changed."""

    def __init__(self, pairs: list[Any]) -> None:
        self.pairs = pairs

    def update(self, **values: Any) -> None:
        names = {*values}
        self.pairs[:] = [pair for pair in self.pairs if pair[0] not in names]
        self.pairs += [[name, value] for name, value in values.items()]


def _deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"tuple": [value]}
    return value


class _Evil:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a truncated file": lambda folder: os.truncate(_data(folder)[0], 1000),
    "a changed bit": lambda folder: _flip(_data(folder)[1]),
    "swapped files": _swap,
    "a missing file": lambda folder: _data(folder)[0].unlink(),
    "a pickle for a file": _pickled,
    "a link for a file": _linked,
    "a FIFO for a file": _fifo,
    "wrong sums": lambda folder: (folder / SUMS).write_text((folder / SUMS).read_text().replace("a", "b")),
    "sums that are none": lambda folder: (folder / SUMS).write_bytes(b"\xff\0" * 99),
    "no sums": lambda folder: (folder / SUMS).unlink(),
    "a changed manifest": lambda folder: _flip(folder / "tpinit.json"),
    "no manifest": lambda folder: (folder / "tpinit.json").unlink(),
    "a deep manifest": lambda folder: _write(folder, b"[" * 1_000_000),
    "a long integer": lambda folder: _write(folder, b'{"format": ' + b"9" * 100_000 + b"}"),
    "a list for a manifest": lambda folder: _write(folder, b"[]"),
    "dots in a name": lambda folder: _forge(folder, lambda page: _chunk(page).update(file="../../etc/passwd")),
    "dots in a file": lambda folder: _forge(folder, lambda page: page["files"].update({"..": 1})),
    "a negative size": lambda folder: _forge(folder, lambda page: _chunk(page).update(begin=-8)),
    "a huge shape": lambda folder: _forge(folder, lambda page: page["tensors"][NAME].update(shape=[1 << 40, 1 << 20])),
    "a chunk outside": lambda folder: _forge(folder, lambda page: _chunk(page).update(begin=1 << 40)),
    "chunks that overlap": lambda folder: _forge(folder, lambda page: _chunk(page).update(offsets=[8, 0])),
    "a missing tensor": lambda folder: _forge(folder, lambda page: page["tensors"].pop(NAME)),
    "another dtype": lambda folder: _forge(folder, lambda page: page["tensors"][NAME].update(dtype="int32")),
    "no such dtype": lambda folder: _forge(folder, lambda page: page["tensors"][NAME].update(dtype="object")),
    "an unknown type": lambda folder: _forge(folder, lambda page: page.update(client_state={"eval": "1"})),
    "a counter that is a text": lambda folder: _forge(folder, lambda page: page["counters"].update(global_steps="1")),
    "a wide manifest": lambda folder: _write(folder, b"[" + b"[]," * (1 << 23) + b"[]]"),
    "an option that is a text": lambda folder: _forge(folder, lambda page: _options(page).update(lr="0.1")),
    "an option of texts": lambda folder: _forge(
        folder, lambda page: _options(page).update(betas={"tuple": ["a", "b"]})
    ),
    "an option that is too short": lambda folder: _forge(
        folder, lambda page: _options(page).update(betas={"tuple": [0.9]})
    ),
    "an option that is too large": lambda folder: _forge(folder, lambda page: _options(page).update(lr=10**400)),
    "an iteration before the first": lambda folder: _forge(
        folder, lambda page: _schedule(page).__setitem__(0, ["last_batch_iteration", -5])
    ),
    "a key that is there twice": lambda folder: _write(
        folder, (folder / "tpinit.json").read_bytes().replace(b'"counters": {', b'"counters": {"global_steps": 0, ', 1)
    ),
    "a FIFO for latest": lambda folder: ((folder.parent / "latest").unlink(), os.mkfifo(folder.parent / "latest")),
    "a link for latest": lambda folder: (
        (folder.parent / "latest").rename(folder.parent / "other"),
        (folder.parent / "latest").symlink_to(folder.parent / "other"),
    ),
    "a schedule's method": lambda folder: _forge(folder, lambda page: _schedule(page).append(["step", 1])),
    "no state of a schedule": lambda folder: _forge(folder, lambda page: page.update(scheduler=None)),
    "deep client state": lambda folder: _forge(folder, lambda page: page.update(client_state=_deep(400))),
    "another file's sum": lambda folder: (folder / SUMS).write_text(
        (folder / SUMS).read_text().replace("__0_0", "swapped").replace("__1_0", "__0_0").replace("swapped", "__1_0")
    ),
    "dots in latest": lambda folder: (folder.parent / "latest").write_text("../one"),
    "a long latest": lambda folder: (folder.parent / "latest").write_text("x" * 100_000),
    "latest of nothing": lambda folder: (folder.parent / "latest").write_text("two"),
}


def load_damaged(rank: int, folder: str) -> dict[str, Any]:
    """Load a copy of one checkpoint with each damage; return the errors, and what changed in the engine."""
    made = engine(2)
    train(made, 1)
    made.save_checkpoint(Path(folder) / "good", tag="one")
    loader = engine(2, seed=1)
    before = held(loader)
    found = {}
    for number, (name, damage) in enumerate(DAMAGES.items()):
        copy = Path(folder) / f"copy{number}"
        if rank == 0:
            shutil.copytree(Path(folder) / "good", copy)
            damage(copy / "one")
        dist.barrier()
        error = error_of(lambda copy=copy: loader.load_checkpoint(copy))  # type: ignore[misc]  # a bound argument
        found[name] = (error["type"], error["text"].replace(str(copy), "RUN"), differing(before, held(loader)))
    ran = (Path(folder) / "ran").exists()
    return {"found": found, "ran": ran, "whole": _load_good(loader, folder), "in_step": in_step(rank)}


def _load_good(loader: Any, folder: str) -> bool:
    """Load the undamaged checkpoint, whose index for torch is now an evil pickle, which nobody reads."""
    if dist.get_rank() == 0:
        (Path(folder) / "good" / "one" / ".metadata").write_bytes(pickle.dumps(_Evil(Path(folder) / "read")))
    dist.barrier()
    loader.load_checkpoint(Path(folder) / "good")
    return loader.global_steps == 1 and not (Path(folder) / "read").exists()


def load_foreign(rank: int, folder: str) -> dict[str, Any]:
    """Load the checkpoint of another model, dtype, optimizer or grouping, and one that is not there."""
    engine(2).save_checkpoint(folder, tag="one")
    foreign = {
        "model": engine(2, intermediate_size=64),
        "layers": engine(2, num_hidden_layers=3),
        "dtype": engine(2, dtype="bf16"),
        "optimizer": engine(2, optimizer=SGD),
    }
    found = {}
    for name, made in foreign.items():
        before = held(made)
        error = error_of(lambda made=made: made.load_checkpoint(folder))  # type: ignore[misc]  # a bound argument
        found[name] = (error["type"], error["text"].replace(folder, "RUN"), differing(before, held(made)))
    made = foreign["optimizer"]
    nothing = made.load_checkpoint(Path(folder) / "none")
    absent = [error_of(lambda place=place: made.load_checkpoint(place, tag="two")) for place in (folder, f"{folder}/x")]  # type: ignore[misc]  # a bound argument
    path, _ = made.load_checkpoint(folder, load_optimizer_states=False)
    different_tags = error_of(lambda: made.load_checkpoint(folder, tag="one" if rank else "two"))
    return {
        "found": found,
        "nothing": nothing,
        "absent": [(error["type"], error["text"]) for error in absent],
        "path": path,
        "tags": different_tags,
        "client": error_of(lambda: made.save_checkpoint(folder, client_state={"model": made.module.config})),
        "tag": error_of(lambda: made.save_checkpoint(folder, tag="../x")),
        "names": sorted(path.name for path in Path(folder).iterdir()),
        "equal": torch.equal(made.module.lm_head.weight, engine(2).module.lm_head.weight),
        "in_step": in_step(rank),
    }
