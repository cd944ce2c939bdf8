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
    """Run the benchmark; 0 where ours runs and agrees with the unsharded model, 1 otherwise."""
    given = _arguments()
    signal.signal(signal.SIGTERM, _stop)
    # The small model comes first: what a peer's first use costs falls on its preparations.
    sizes = [TINY] if given.smoke else [TINY, LLAMA]
    chosen = [peer for peer in PEERS if peer is UNSHARDED or not given.only or peer.name in given.only]
    # The ranks' own files go with the folder; those of a run that is killed are removed by its ranks.
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
    ours = [row for outcome in result.outcomes for row in outcome.rows if row.peer is OURS]
    return 1 if any(row.wrong or row.reason for row in ours) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--rotations", type=int, default=DEFAULTS["rotations"], help="how often every peer takes its turn (%(default)s)"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=DEFAULTS["steps"],
        help="steps a turn; the tiny model takes four times as many (%(default)s)",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=[peer.name for peer in PEERS],
        help="this peer beside the unsharded model; may be given again",
    )
    parser.add_argument("--smoke", action="store_true", help="the tiny model alone, one rotation")
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--document", type=Path, help="write the Markdown page here")
    parser.add_argument("--plot", type=Path, help="write the SVG plot here")
    given = parser.parse_args()
    if given.rotations < 1 or given.steps < 1:
        parser.error("--rotations and --steps are at least 1")
    return given


def _origin(given: argparse.Namespace) -> str:
    """What the page names as its origin: the command, and whatever was not as it is by itself."""
    told = [
        f"--{name} {getattr(given, name)}" for name in ("rotations", "steps") if getattr(given, name) != DEFAULTS[name]
    ]
    told += [f"--only {name}" for name in given.only or ()] + ["--smoke"] * given.smoke
    return " ".join(["make bench", *(["with", *told] if told else [])])


def _stop(number: int, frame: FrameType | None) -> None:
    """Leave by the same way as an exception, so that everything that was started is ended."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
