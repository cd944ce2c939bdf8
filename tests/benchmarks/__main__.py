"""The command: `python -m benchmarks`, which `make bench` runs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from benchmarks import chart, report
from benchmarks.campaign import measure
from benchmarks.host import RanksLost
from benchmarks.roster import OURS, PEERS, UNSHARDED
from benchmarks.sizes import LLAMA, TINY

DEFAULTS = {"rotations": 6, "steps": 5}


def main() -> int:
    """Run the benchmark. Returns 0 if tpinit runs and its losses agree with the unsharded model's, else 1."""
    given = _arguments()
    signal.signal(signal.SIGTERM, _stop)
    # The small model runs first, so that one-time costs of a peer's first use fall on its warm-up.
    sizes = [TINY] if given.smoke else [TINY, LLAMA]
    chosen = [peer for peer in PEERS if peer is UNSHARDED or not given.only or peer.name in given.only]
    # The ranks write into this folder only. If this process is killed, the ranks remove it.
    with tempfile.TemporaryDirectory(prefix="tpinit-bench-") as folder:
        try:
            result = measure(
                chosen,
                sizes,
                home=Path(folder),
                steps=given.steps,
                rotations=1 if given.smoke else given.rotations,
                loads=1 if given.smoke else 3,
                say=lambda text: print(f"-- {text}", file=sys.stderr, flush=True),
            )
        except RanksLost as lost:
            print(lost, file=sys.stderr)
            return 1
    print(report.table(result))
    if given.plot:
        given.plot.write_text(chart.draw(result), encoding="utf-8")
    if given.json:
        given.json.write_text(json.dumps(report.as_json(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if given.document:
        plot = os.path.relpath(given.plot, given.document.parent) if given.plot else ""
        given.document.write_text(report.page(result, _origin(given), plot), encoding="utf-8")
    ours = [row for size in result.sizes for row in size.rows if row.peer is OURS]
    return 1 if any(row.wrong or row.reason for row in ours) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--rotations", type=int, default=DEFAULTS["rotations"], help="blocks of steps per peer (%(default)s)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=DEFAULTS["steps"],
        help="steps per block; the tiny model takes four times as many (%(default)s)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=[peer.name for peer in PEERS],
        help="run only this peer and the unsharded model; repeatable",
    )
    parser.add_argument("--smoke", action="store_true", help="run one rotation of the tiny model only")
    parser.add_argument("--json", type=Path, help="write every measured value to this file")
    parser.add_argument("--document", type=Path, help="write the Markdown page to this file")
    parser.add_argument("--plot", type=Path, help="write the SVG plot to this file")
    given = parser.parse_args()
    if given.rotations < 1 or given.steps < 1:
        parser.error("--rotations and --steps must be at least 1")
    return given


def _origin(given: argparse.Namespace) -> str:
    """Return the command that the page names, with every argument that differs from its default."""
    arguments = [
        f"--{name} {getattr(given, name)}" for name in ("rotations", "steps") if getattr(given, name) != DEFAULTS[name]
    ]
    arguments += [f"--only {name}" for name in given.only or ()] + ["--smoke"] * given.smoke
    return " ".join(["make bench", *(["with", *arguments] if arguments else [])])


def _stop(number: int, frame: FrameType | None) -> None:
    """Raise SystemExit, so that the processes of all ranks are ended on the way out."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
