"""One rank of one peer: `python -m benchmarks.rank CODE RANK RANKS HOME`.

It reads commands from stdin and writes replies to stdout, as JSON lines. Between commands it blocks in a read and uses
no processor time. It ends when its host ends.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from benchmarks import counting, memory
from benchmarks.peers.base import Peer, Step, Unavailable, batch_of, save, unsharded
from benchmarks.sizes import SIZES, Size

__all__ = ["main"]

_DEATH = 1  # PR_SET_PDEATHSIG
_LIMIT = timedelta(seconds=300)  # for one collective: longer than the host waits for a reply


def main() -> None:
    """Join the other ranks, then run the commands of stdin until it ends."""
    code, rank, ranks, home = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: _end(home))
    ctypes.CDLL(None).prctl(_DEATH, signal.SIGTERM)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of the peer must not mix with the replies
    torch.set_num_threads(1)
    if ranks > 1:
        store = FileStore(str(home / f"store.{code.replace(':', '.')}"), ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=_LIMIT)
    bench: RankCommands | None = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["do"] == "start":
                module, _, name = code.partition(":")
                bench = RankCommands(getattr(importlib.import_module(module), name)(), ranks)
                answer = bench.hello()
            else:
                assert bench is not None
                answer = getattr(bench, order.pop("do"))(**order)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    if os.getppid() != parent:
        _end(home)
    os._exit(0)  # without the destructors of engines and groups, which may wait for ranks that are gone


def _end(home: Path) -> None:
    """Remove the folder of the run and end this rank's session, because the host has ended."""
    shutil.rmtree(home, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


class RankCommands:
    """The commands: each is a method that returns its reply as plain data."""

    def __init__(self, peer: Peer, ranks: int) -> None:
        self.peer = peer
        self.ranks = ranks
        self.step: Step | None = None
        self.size: Size | None = None
        self.folder = ""
        self.done = 0
        # Import the model class now, so that no measurement includes the import.
        _ = importlib.import_module("transformers").LlamaForCausalLM
        self.base = 0  # bytes of resident memory before the model is loaded

    def hello(self) -> dict[str, Any]:
        return {"versions": self.peer.versions(), "backend": dist.get_backend() if self.ranks > 1 else None}

    def prepare(self, size: str, folder: str) -> dict[str, Any]:
        """Write the model that all peers load."""
        return {"parameters": save(SIZES[size], folder)}

    def load(self, size: str, folder: str, times: int) -> dict[str, Any]:
        """Make the model ready to train, `times` times each way; the last model is the one that trains.

        `shard`: seconds to shard an unsharded model in memory. `load`: seconds to load from files; with `own_slices`
        each rank reads its own slices only, otherwise it reads the unsharded model and shards it.
        """
        self.size, self.folder = SIZES[size], folder
        self._drop()
        memory.trim_heap()
        self.base = memory.resident() or 0
        answer: dict[str, Any] = {"shard": [], "load": [], "own_slices": None, "missing": []}
        direct = cut = True
        try:
            peak = memory.peak(self._from_files, self._drop)
        except Unavailable as reason:
            direct = False
            answer["missing"].append(f"load: {reason}")
            peak = memory.peak(lambda: self._from_model([]), self._drop)
        answer["peak"] = self._peak(peak)
        answer["own_slices"] = direct
        for _ in range(times):
            times_cut: list[float] = []
            self._drop()
            try:
                begun = time.perf_counter()
                if cut:
                    self._from_model(times_cut)
                    answer["shard"].append(times_cut[0])
                    if not direct:
                        answer["load"].append(time.perf_counter() - begun)
            except Unavailable as reason:
                cut = False
                answer["missing"].append(f"shard: {reason}")
            if direct:
                self._drop()
                begun = time.perf_counter()
                self._from_files()
                answer["load"].append(time.perf_counter() - begun)
        return answer

    def _from_model(self, seconds: list[float]) -> None:
        model = unsharded(self.folder)
        begun = time.perf_counter()
        self.step = self.peer.from_model(model)
        seconds.append(time.perf_counter() - begun)

    def _from_files(self) -> None:
        self.step = self.peer.from_files(self.folder)

    def _drop(self) -> None:
        self.step, self.done = None, 0
        gc.collect()
        self.peer.let_go()
        self._together()

    def _together(self) -> None:
        if self.ranks > 1:
            dist.barrier()

    def _once(self) -> float:
        assert self.step is not None
        assert self.size is not None
        self.done += 1
        return float(self.step(batch_of(self.size, self.done - 1)).detach())

    def steps(self, count: int) -> dict[str, Any]:
        """Train `count` steps and return their losses and seconds. All ranks start together."""
        losses, seconds = [], []
        self._together()
        for _ in range(count):
            begun = time.perf_counter()
            losses.append(self._once())
            seconds.append(time.perf_counter() - begun)
        return {"losses": losses, "seconds": seconds}

    def inspect(self) -> dict[str, Any]:
        """Train three more steps, untimed: one counts collectives, two measure memory."""
        seen = counting.tally(self._once)
        peak = memory.peak(self._once)
        return {
            "collectives": sum(seen.calls.values()),
            "by_kind": dict(sorted(seen.calls.items())),
            "sent_bytes": round(seen.sent),
            "largest_bytes": seen.largest,
            "alone": seen.alone,
            "peak": self._peak(peak),
        }

    def state(self, folder: str) -> dict[str, Any]:
        """Save, load and export once: seconds of each, what it wrote, and the growth of memory in another one.

        `restored` tells whether the step after the load has the loss that it had after the save.
        """
        answer: dict[str, Any] = {"missing": []}
        for what, work in (
            ("save", self.peer.save_state), ("restore", self.peer.load_state), ("export", self.peer.export)
        ):  # fmt: skip
            place = str(Path(folder) / ("export" if what == "export" else "state"))
            try:
                self._together()
                begun = time.perf_counter()
                work(place)
                self._together()
                answer[what] = time.perf_counter() - begun
                answer[f"{what}_growth"] = memory.growth(functools.partial(work, place))
            except Unavailable as reason:
                answer["missing"].append(f"{what}: {reason}")
                continue
            if what == "save":
                after = self._once()
            elif what == "restore":
                self.done -= 1
                answer["restored"] = self._once() == after
            answer[f"{what}_bytes"] = sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file())
        return answer

    def _peak(self, peak: memory.Peak) -> dict[str, int | None]:
        growths = {"resident_growth": peak.resident, "resident_growth_read": peak.read}
        known = {name: None if growth is None else max(0, growth - self.base) for name, growth in growths.items()}
        return {"tensors": peak.tensors, **known}


if __name__ == "__main__":
    main()
