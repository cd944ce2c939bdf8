"""The output of a run: a table for the terminal, JSON, and the page docs/benchmarks.md."""

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
_STATE = (
    "", "save", "x tpinit", "load", "x tpinit", "MB written", "save: tensors +MB", "RSS +MB", "load: tensors +MB",
    "RSS +MB", "export", "x tpinit", "tensors +MB", "RSS +MB", "goes on",
)  # fmt: skip


def table(result: BenchmarkRun) -> str:
    """Return the run as text for the terminal."""
    parts = [conditions(result)]
    for measurement in result.sizes:
        parts += [f"{measurement.size.name}: {measurement.size.description}", _align([_STEP, *_step_rows(measurement)])]
        parts += [_align([_LOAD, *_load_rows(measurement)]), _align([_STATE, *_state_rows(measurement)])]
        parts += [f"{measurement.size.name}: {summary(measurement)}"]
    return "\n\n".join(part for part in parts if part)


def conditions(result: BenchmarkRun) -> str:
    """Return the conditions of the run as one line, without anything that identifies the machine."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result.versions.items()))
    settings = " ".join(f"{name}={value}" for name, value in result.allocator.items() if value is not None)
    return (
        f"2 ranks of 1 thread on {result.cores} cores over {result.backend or 'no backend'}, fp32, fused AdamW; "
        f"{result.rotations} rotations of blocks of {result.steps} steps; {versions}; "
        f"glibc's allocator {f'with {settings}' if settings else 'with its defaults'}"
    )


def summary(measurement: SizeMeasurement) -> str:
    """Return tpinit's step time relative to the ideal and to the best peer with right losses, as a sentence."""
    unsharded, ours = measurement.rows[0], next((row for row in measurement.rows if row.peer.name == "tpinit"), None)
    others = [row for row in measurement.rows[1:] if row is not ours and row.step is not None and not row.wrong]
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


def _step_rows(measurement: SizeMeasurement) -> list[Cells]:
    return [_step_row(row, measurement.rows[0]) for row in measurement.rows]


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


def _load_rows(measurement: SizeMeasurement) -> list[Cells]:
    rows = []
    for row in measurement.rows:
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
                "; ".join(row.missing) if row.peer.name == "tpinit" or not row.shard else "",
            ]
        )
    return rows


def _state_rows(measurement: SizeMeasurement) -> list[Cells]:
    ours = next((row for row in measurement.rows if row.peer.name == "tpinit"), None)
    return [_state_row(row, ours) for row in measurement.rows if not row.reason and any(row.states[:1]) and _does(row)]


def _does(row: PeerMeasurement) -> bool:
    return any(name in row.states[0] for name in ("save", "restore", "export"))


def _state_row(row: PeerMeasurement, ours: PeerMeasurement | None) -> Cells:
    cells: dict[str, Cells] = {}
    for name in ("save", "restore", "export"):
        mine = [state[name] for state in row.states if name in state]
        own = [state[name] for state in ours.states if name in state] if ours is not None else []
        growth = row.states[0].get(f"{name}_growth", {})
        cells[name] = [
            _seconds(_middle(mine)) if mine else _NONE,
            f"{_middle(mine) / _middle(own):.2f}" if mine and own else _NONE,
            _megabytes(growth.get("tensors")),
            _megabytes(growth.get("resident")),
        ]
    save, load, export = cells["save"], cells["restore"], cells["export"]
    written = _megabytes(row.states[0].get("save_bytes"))
    restored = "bit for bit" if all(state["restored"] for state in row.states) else "WRONG"
    return [
        row.peer.label, *save[:2], *load[:2], written, *save[2:], *load[2:], *export,
        restored if "restore" in row.states[0] else _NONE,
    ]  # fmt: skip


def as_json(result: BenchmarkRun) -> dict[str, Any]:
    """Return the run with every measured value as plain data."""
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
            "allocator": result.allocator,
        },
        "sizes": [
            {
                "name": measurement.size.name,
                "parameters": measurement.size.parameters,
                "peers": [_row_json(row, measurement.rows[0]) for row in measurement.rows],
            }
            for measurement in result.sizes
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
        # JSON has no infinity: for a loss that is not finite this is null, and "wrong" is true.
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
        "states": row.states,
        "missing": row.missing,
    }


def page(result: BenchmarkRun, command: str, plot: str) -> str:
    """Return the run as a Markdown page. `command` is the command that the page names, `plot` the plot's address."""
    parts = [
        "# Benchmarks",
        f"Written by `{command}`. Do not edit.",
        conditions(result)[0].upper() + conditions(result)[1:] + ".",
        f"![Time of a step, as a multiple of the ideal]({plot})" if plot else "",
    ]
    for measurement in result.sizes:
        parts += [
            f"## {measurement.size.name.capitalize()}",
            f"{measurement.size.description}. {summary(measurement)}".strip(),
        ]
        parts += ["### A training step", _markdown([_STEP, *_step_rows(measurement)])]
        parts += ["### Getting ready", _markdown([_LOAD, *_load_rows(measurement)])]
        parts += ["### Saving and loading a run", _markdown([_STATE, *_state_rows(measurement)])]
    return "\n\n".join(part for part in [*parts, _NOTES] if part) + "\n"


_NOTES = f"""## How it is measured

- All peers run at once, each in its own processes, with the same seeded weights from the same safetensors file and the
  same batches. A peer that is not being measured blocks in a read. transformers makes new process groups in every
  load, whose threads poll a hundred times a second; they are destroyed with its model. The peers take blocks of steps
  in rotation, and every rotation starts with another peer, so that other load of the machine affects all of them. The
  tiny model takes four times as many steps per block, and is loaded four times as often.
- **step**: the median time of forward, backward and update over all timed steps; a step takes as long as its slowest
  rank. **x ideal**: the median over the rotations of that time divided by half of the unsharded model's step time;
  **quartiles** are those of the rotations.
- **losses**: the largest relative difference from the unsharded model's losses in the first {COMPARED} steps. A peer
  with more than {AGREEMENT:.0e} is marked WRONG and can't be the best peer.
- **collectives**: the collectives of one step over groups of more than one rank, counted at torch's dispatcher in a
  step that is not timed; "alone" counts those over a group of one rank. **MB sent**: what one rank sends if each
  collective runs as a ring. **largest**: the largest tensor of a collective.
- **tensors**: the peak of torch's allocator, with everything that is alive. **RSS +**: the peak of the process minus
  its memory before loading, mapped files included. **read**: the same after every element of its tensors was read,
  because slices that are views of a mapped file are in memory only then. All are the larger rank's, from a run that is
  not timed.
- **shard**: from an unsharded model in memory to one that is ready to train. **load**: from safetensors to a model that
  is ready to train; if a peer can't read its own slices only, every rank reads the unsharded model and shards it.
  Medians, with the files in the page cache.
- **save**, **load**: model and optimizer states of all ranks, until the last rank is done, in the page cache:
  `save_checkpoint` and `load_checkpoint` of tpinit and DeepSpeed, torch.distributed.checkpoint for torch's rows.
  **export**: `save_pretrained` of the whole model. **x tpinit**: the ratio of the medians. tpinit and
  torch.distributed.checkpoint wait until the files are on the disk, the others do not; tpinit also hashes every file,
  verifies it before it loads, and saves RNG states. **+MB**: the larger rank's growth during the call, beside what it
  holds. **goes on**: the step after the load has the loss that it had after the save.
- torch's rows follow torchtitan: a vocab-parallel embedding and head under `loss_parallel`, and the same with norms and
  activations between the layers sharded along the sequence.
- No peer clips gradients: DeepSpeed's default of 1.0 is set to 0, and so is tpinit's.
- All processes run with the same settings of glibc's allocator, which the first line of this page states. On a CPU the
  allocator decides whether memory that a step frees stays for the next one: with `MALLOC_TRIM_THRESHOLD_` and
  `MALLOC_MMAP_THRESHOLD_` (or `GLIBC_TUNABLES`) set to large values it stays, with glibc's defaults large tensors are
  returned to the system and mapped anew in every step.
- DeepSpeed's shared-memory all-reduce is disabled: it serves inference only, and needs a C++ build."""


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
    # A row of a peer that does not run must not widen the columns of the others.
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
