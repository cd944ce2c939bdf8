"""The measurement: all peers run at once, take blocks of steps in rotation, and their losses are compared."""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.host import RankProcesses, RanksLost
from benchmarks.roster import UNSHARDED, PeerSpec
from benchmarks.sizes import AGREEMENT, ALLOCATOR_VARIABLES, COMPARED, Size

__all__ = ["SizeMeasurement", "BenchmarkRun", "PeerMeasurement", "measure"]

_START, _WORK = 180.0, 240.0  # seconds: the imports of all ranks at once, and one command


@dataclass
class PeerMeasurement:
    """The measurements of one peer at one model size.

    `blocks` has one list per rotation with the seconds of each step (the slowest rank's). `shard` and `load` are in
    seconds, `off` is the largest relative difference of a loss from the unsharded model's. `reason` says why the peer
    does not run, empty if it does.
    """

    peer: PeerSpec
    reason: str = ""
    losses: list[float] = field(default_factory=list)
    off: float | None = None
    blocks: list[list[float]] = field(default_factory=list)
    shard: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)
    own_slices: bool | None = None
    missing: list[str] = field(default_factory=list)
    load_peak: dict[str, int | None] = field(default_factory=dict)
    inspected: dict[str, Any] = field(default_factory=dict)
    states: list[dict[str, Any]] = field(default_factory=list)

    @property
    def wrong(self) -> bool:
        """Whether a loss differs from the unsharded model's by more than AGREEMENT, or is not finite."""
        return self.off is not None and not self.off <= AGREEMENT

    @property
    def step(self) -> float | None:
        """The median step in seconds."""
        return statistics.median(second for block in self.blocks for second in block) if self.blocks else None

    def to_ideal(self, unsharded: PeerMeasurement) -> list[float]:
        """Return one ratio per rotation: the median step over half of the unsharded model's median step."""
        pairs = zip(self.blocks, unsharded.blocks, strict=False)
        return [statistics.median(own) / (statistics.median(reference) / 2) for own, reference in pairs]


@dataclass
class SizeMeasurement:
    """The measurements at one model size: one row per peer, the unsharded model first."""

    size: Size
    rows: list[PeerMeasurement]


@dataclass
class BenchmarkRun:
    """The result of one run and its conditions.

    `allocator` has the values of ALLOCATOR_VARIABLES under which all ranks ran, None for one that was not set.
    """

    sizes: list[SizeMeasurement]
    versions: dict[str, str]
    backend: str
    cores: int
    steps: int
    rotations: int
    allocator: dict[str, str | None] = field(default_factory=dict)


def measure(
    peers: Sequence[PeerSpec],
    sizes: Sequence[Size],
    *,
    home: Path,
    steps: int,
    rotations: int,
    loads: int,
    say: Callable[[str], None],
) -> BenchmarkRun:
    """Start all ranks, measure every size, end all ranks. A peer that can't run gets a row with a reason."""
    (home / "path").mkdir()
    (home / "path" / "benchmarks").symlink_to(Path(__file__).parent, target_is_directory=True)
    versions: dict[str, str] = {}
    with _alive(peers, home, say) as (alive, reasons):
        backends = set()
        for name, ranks in list(alive.items()):
            try:
                hello = ranks.receive(_START)[0]
            except RanksLost as lost:
                del alive[name]
                reasons[name] = str(lost)
                continue
            versions |= hello["versions"]
            backends.add(hello["backend"])
        if UNSHARDED.name not in alive:
            raise RanksLost(f"the unsharded model does not run: {reasons[UNSHARDED.name]}")
        measured = [_size(peers, size, alive, reasons, home, (steps, rotations, loads), say) for size in sizes]
    measured.sort(key=lambda measurement: -measurement.size.parameters)
    return BenchmarkRun(
        measured,
        versions,
        "/".join(sorted(backend for backend in backends if backend)),
        len(os.sched_getaffinity(0)),
        steps,
        rotations,
        {name: os.environ.get(name) for name in ALLOCATOR_VARIABLES},
    )


@contextmanager
def _alive(
    peers: Sequence[PeerSpec], home: Path, say: Callable[[str], None]
) -> Iterator[tuple[dict[str, RankProcesses], dict[str, str]]]:
    """Start all ranks of all peers at once, and end them when the block ends, also by an exception."""
    alive: dict[str, RankProcesses] = {}
    reasons: dict[str, str] = {}
    try:
        for peer in peers:
            try:
                alive[peer.name] = RankProcesses(peer, home)
            except RanksLost as lost:
                reasons[peer.name] = str(lost)
                continue
            alive[peer.name].send(do="start")
        say(f"starting {sum(len(ranks.processes) for ranks in alive.values())} processes")
        yield alive, reasons
    finally:
        for ranks in alive.values():
            ranks.kill()


def _size(
    peers: Sequence[PeerSpec],
    size: Size,
    alive: dict[str, RankProcesses],
    reasons: dict[str, str],
    home: Path,
    counts: tuple[int, int, int],
    say: Callable[[str], None],
) -> SizeMeasurement:
    steps, rotations, loads = counts
    steps, loads = steps * size.repeats, loads * size.repeats
    folder = home / f"model-{size.name}"
    parameters = alive[UNSHARDED.name].ask(_WORK, do="prepare", size=size.name, folder=str(folder))[0]["parameters"]
    assert parameters == size.parameters, (parameters, size.parameters)
    rows = {peer.name: PeerMeasurement(peer) for peer in peers}

    def each(what: Callable[[PeerMeasurement, RankProcesses], None], order: Sequence[str]) -> None:
        for name in order:
            if name in alive:
                try:
                    what(rows[name], alive[name])
                except RanksLost as lost:
                    if name == UNSHARDED.name:
                        raise  # without the unsharded model there is no ideal time and no reference loss
                    del alive[name]
                    reasons[name] = str(lost)

    names = list(rows)
    say(f"{size.name}: loading, and {COMPARED} steps for the losses")
    each(lambda row, ranks: _prepare(row, ranks, size, folder, loads), names)
    begun = time.monotonic()
    for rotation in range(rotations):
        # Every rotation starts with another peer.
        start = rotation % len(names)
        each(lambda row, ranks: _block(row, ranks, steps), names[start:] + names[:start])
        say(f"{size.name}: rotation {rotation + 1} of {rotations} ({time.monotonic() - begun:.0f} s)")
    each(_inspect, names)
    times = counts[2]
    for number in range(times):
        start = number % len(names)
        each(lambda row, ranks: _state(row, ranks, home), names[start:] + names[:start])
    say(f"{size.name}: {times} times saved and loaded")
    for name, row in rows.items():
        if name in reasons:
            row.reason, row.blocks = reasons[name], []
        elif row.losses:
            row.off = _off(row.losses, rows[UNSHARDED.name].losses)
    return SizeMeasurement(size, list(rows.values()))


def _prepare(row: PeerMeasurement, ranks: RankProcesses, size: Size, folder: Path, loads: int) -> None:
    answers = ranks.ask(_WORK, do="load", size=size.name, folder=str(folder), times=loads)
    row.shard = [max(each) for each in zip(*(answer["shard"] for answer in answers), strict=True)]
    row.load = [max(each) for each in zip(*(answer["load"] for answer in answers), strict=True)]
    row.own_slices = answers[0]["own_slices"]
    row.missing = answers[0]["missing"]
    row.load_peak = _largest([answer["peak"] for answer in answers])
    taken = ranks.ask(_WORK, do="steps", count=COMPARED)  # these steps are the warm-up too
    row.losses = taken[0]["losses"]
    if any(answer["losses"] != row.losses for answer in taken):
        row.missing.append("its ranks return different losses")


def _block(row: PeerMeasurement, ranks: RankProcesses, steps: int) -> None:
    answers = ranks.ask(_WORK, do="steps", count=steps)
    row.blocks.append([max(each) for each in zip(*(answer["seconds"] for answer in answers), strict=True)])


def _inspect(row: PeerMeasurement, ranks: RankProcesses) -> None:
    answers = ranks.ask(_WORK, do="inspect")
    row.inspected = {**answers[0], "peak": _largest([answer["peak"] for answer in answers])}


def _state(row: PeerMeasurement, ranks: RankProcesses, home: Path) -> None:
    """Save and load once; times are those of the slowest rank, growths those of the larger one."""
    with tempfile.TemporaryDirectory(dir=home) as folder:
        answers = ranks.ask(_WORK, do="state", folder=folder)
    found = dict(answers[0])
    for name in ("save", "restore", "export"):
        if name in found:
            found[name] = max(answer[name] for answer in answers)
            found[f"{name}_growth"] = _largest([answer[f"{name}_growth"] for answer in answers])
    found["restored"] = all(answer.get("restored", True) for answer in answers)
    row.states.append(found)


def _largest(peaks: list[dict[str, int | None]]) -> dict[str, int | None]:
    return {
        name: max(peak[name] or 0 for peak in peaks) if all(peak[name] is not None for peak in peaks) else None
        for name in peaks[0]
    }


def _off(losses: list[float], right: list[float]) -> float:
    """Return the largest relative difference of two lists of losses; infinite if a loss is not finite."""
    differences = [abs(loss - expected) / abs(expected) for loss, expected in zip(losses, right, strict=True)]
    return max(difference if math.isfinite(difference) else math.inf for difference in differences)
