"""What a run says: a table for the terminal, JSON, and the page docs/benchmarks.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.campaign import BenchmarkRun, PeerMeasurement, SizeMeasurement
from benchmarks.sizes import AGREEMENT, COMPARED

__all__ = ["as_json", "page", "table"]

Cells = list[str]
_NONE = "—"
_STEP = ("", "step", "x ideal", "quartiles", "losses", "collectives", "MB sent", "largest MB", "tensors MB", "RSS +MB")
_LOAD = ("", "shard", "load", "reads", "tensors MB", "RSS +MB", "RSS +MB, read", "")


def table(result: BenchmarkRun) -> str:
    """The whole run as text."""
    parts = [conditions(result)]
    for outcome in result.outcomes:
        parts += [f"{outcome.size.name}: {outcome.size.words}", _align([_STEP, *_step_rows(outcome)])]
        parts += [_align([_LOAD, *_load_rows(outcome)]), f"{outcome.size.name}: {summary(outcome)}"]
    return "\n\n".join(part for part in parts if part)


def conditions(result: BenchmarkRun) -> str:
    """Under what the numbers were taken. Nothing that names a machine."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result.versions.items()))
    return (
        f"2 ranks of 1 thread on {result.cores} cores over {result.backend or 'no backend'}, fp32, fused AdamW; "
        f"{result.rotations} rotations of blocks of {result.steps} steps; {versions}"
    )


def summary(outcome: SizeMeasurement) -> str:
    """Ours against the ideal and against the best peer whose losses are right."""
    unsharded, ours = outcome.rows[0], next((row for row in outcome.rows if row.peer.name == "tpinit"), None)
    others = [row for row in outcome.rows[1:] if row is not ours and row.step is not None and not row.wrong]
    if ours is None or ours.step is None:
        return ""
    text = f"tpinit takes {_middle(ours.to_ideal(unsharded)):.2f} times the ideal"
    if others:
        best = min(others, key=lambda row: _middle(row.to_ideal(unsharded)))
        pairs = zip(best.blocks, ours.blocks, strict=False)
        ratio = _middle([statistics.median(theirs) / statistics.median(own) for theirs, own in pairs])
        text += f"; the best peer ({best.peer.label}) takes {ratio:.2f} times as long as tpinit"
    loading = [row for row in others if row.load]
    if loading and ours.load:
        quickest = min(loading, key=lambda row: _middle(row.load))
        ratio = _middle(ours.load) / _middle(quickest.load)
        text += f"; tpinit loads in {ratio:.2f} times the time of the quickest peer ({quickest.peer.label})"
    return text + "."


def _step_rows(outcome: SizeMeasurement) -> list[Cells]:
    return [_step_row(row, outcome.rows[0]) for row in outcome.rows]


def _step_row(row: PeerMeasurement, unsharded: PeerMeasurement) -> Cells:
    if row.reason or row.step is None:
        return [row.peer.label, f"does not run: {row.reason}", *[""] * (len(_STEP) - 2)]
    ratios = row.to_ideal(unsharded)
    seen = row.inspected
    peak = seen.get("peak", {})
    return [
        row.peer.label,
        _seconds(row.step),
        f"{_middle(ratios):.2f}",
        _quartiles(ratios),
        "reference" if row is unsharded else f"WRONG by {row.off:.1e}" if row.wrong else f"agree ({row.off:.0e})",
        str(seen["collectives"]) + (f" (+{seen['alone']} alone)" if seen["alone"] else ""),
        f"{seen['sent_bytes'] / 1e6:.2f}",
        f"{seen['largest_bytes'] / 1e6:.2f}",
        _megabytes(peak.get("tensors")),
        _megabytes(peak.get("resident_growth")),
    ]


def _load_rows(outcome: SizeMeasurement) -> list[Cells]:
    rows = []
    for row in outcome.rows:
        if row.reason or not row.load:
            continue
        reads = "own slices" if row.own_slices else "the whole model"
        rows.append(
            [
                row.peer.label,
                _seconds(_middle(row.shard)) if row.shard else _NONE,
                _seconds(_middle(row.load)),
                reads,
                _megabytes(row.load_peak.get("tensors")),
                _megabytes(row.load_peak.get("resident_growth")),
                _megabytes(row.load_peak.get("resident_growth_read")),
                "; ".join(row.missing) if row.peer.name == "tpinit" or row.shard == [] else "",
            ]
        )
    return rows


def as_json(result: BenchmarkRun) -> dict[str, Any]:
    """The run with every number that was taken."""
    return {
        "conditions": {
            "ranks": 2,
            "threads_per_rank": 1,
            "cores": result.cores,
            "backend": result.backend,
            "versions": dict(sorted(result.versions.items())),
            "rotations": result.rotations,
            "steps_per_block": result.steps,
            "dtype": "float32",
            "optimizer": "fused AdamW",
            "losses_compared": COMPARED,
            "agreement": AGREEMENT,
        },
        "sizes": [
            {
                "name": outcome.size.name,
                "parameters": outcome.size.parameters,
                "peers": [_row_json(row, outcome.rows[0]) for row in outcome.rows],
            }
            for outcome in result.outcomes
        ],
    }


def _row_json(row: PeerMeasurement, unsharded: PeerMeasurement) -> dict[str, Any]:
    ratios = row.to_ideal(unsharded) if row.step is not None else []
    return {
        "peer": row.peer.name,
        "label": row.peer.label,
        "runs": not row.reason,
        "reason": row.reason,
        "wrong": row.wrong,
        # JSON has no infinity: a loss that is not a number leaves this null beside "wrong".
        "off_by": row.off if row.off is None or row.off < float("inf") else None,
        "losses": [loss if math.isfinite(loss) else None for loss in row.losses],
        "median_step_seconds": row.step,
        "to_ideal": _middle(ratios) if ratios else None,
        "to_ideal_by_rotation": ratios,
        "step_seconds_by_rotation": row.blocks,
        "step": row.inspected,
        "shard_seconds": row.shard,
        "load_seconds": row.load,
        "load_reads_own_slices": row.own_slices,
        "load_peak": row.load_peak,
        "missing": row.missing,
    }


def page(result: BenchmarkRun, command: str, plot: str) -> str:
    """The run as a Markdown page."""
    parts = [
        "# Benchmarks",
        f"Written by `{command}`. Do not edit.",
        conditions(result)[0].upper() + conditions(result)[1:] + ".",
        f"![Time of a step, as a multiple of the ideal]({plot})" if plot else "",
    ]
    for outcome in result.outcomes:
        parts += [f"## {outcome.size.name.capitalize()}", f"{outcome.size.words}. {summary(outcome)}".strip()]
        parts += ["### A training step", _markdown([_STEP, *_step_rows(outcome)])]
        parts += ["### Getting ready", _markdown([_LOAD, *_load_rows(outcome)])]
    return "\n\n".join(part for part in [*parts, _NOTES] if part) + "\n"


_NOTES = f"""## How it is measured

- All peers are alive at once, each in its own processes, with the same seeded weights from the same safetensors file
  and the same batches. They wait in a read when it is not their turn. The process groups that transformers makes anew
  in every load are ended with its model: each has a thread that looks for work a hundred times a second. Blocks go
  round in rotation, and every rotation starts with another peer, so that what else the machine does falls on all of
  them. A block of the tiny model has four times as many steps, and it is loaded four times as often.
- **step**: median over all timed steps of forward, backward and update; a step takes as long as its slowest rank.
  **x ideal**: that time over half of the unsharded one's, rotation by rotation, the median of the rotations;
  **quartiles** are those of the rotations.
- **losses**: the first {COMPARED} steps against the unsharded model's, largest relative difference. More than
  {AGREEMENT:.0e} is marked WRONG, and such a peer is not counted as the best one.
- **collectives**: in one step, over groups of more than one rank, counted at torch's dispatcher in a step of its own;
  those over a group of one are named apart. **MB sent**: by one rank, when each runs as a ring. **largest**: the
  biggest tensor of any of them.
- **tensors**: peak of torch's allocator, everything alive included. **RSS +**: peak of the process over what it held
  before it loaded, mapped files included. **read**: the same once every number of its tensors was read: slices that are
  views of a mapped file are in memory only then. All are the larger rank's, seen in a run that is not timed.
- **shard**: from a whole model in memory to one that is ready to train. **load**: from safetensors to ready; where a
  peer can't read its own slices only, every rank reads the whole model and cuts it. Medians, files in the page cache.
- torch's rows follow torchtitan: a vocabulary-parallel embedding and head under `loss_parallel`, and the same with the
  norms and what lies between the layers cut along the sequence.
- Nobody clips: DeepSpeed's default of 1.0 is set to 0, as is ours.
- tpinit tells glibc to keep what a step frees, as MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ would for any
  process; the peers run as they come.
- DeepSpeed's shared-memory all-reduce is left out: it serves inference only, and needs a C++ build."""


def _middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def _quartiles(values: Sequence[float]) -> str:
    if len(values) < 2:
        return _NONE
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{low:.2f}-{high:.2f}"


def _seconds(value: float) -> str:
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value * 1000:.0f} ms"


def _megabytes(value: int | None) -> str:
    return _NONE if value is None else f"{value / 1e6:.1f}"


def _align(rows: Sequence[Sequence[str]]) -> str:
    # A row that says why there are no numbers must not widen their columns.
    full = [row for row in rows if not row[1].startswith("does not run")]
    widths = [max(len(row[i]) for row in full) for i in range(len(rows[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    )


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body)])
