"""The ledger options of `tpinit prove`: write the ledger and its page, or compare it with the committed ledger."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tpinit.proofs.claims import THEOREMS
from tpinit.proofs.ledger.comparing import UnreadableLedger, differences, read, without_times
from tpinit.proofs.ledger.entries import ledger, missing, text
from tpinit.proofs.ledger.necessity import needed_by_each
from tpinit.proofs.ledger.page import page
from tpinit.proofs.running import TheoremResult

__all__ = ["add_arguments", "is_wanted", "prepare", "report"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the ledger options to the parser."""
    parser.add_argument(
        "--report", metavar="DIR", type=Path, help="write the ledger (ledger.json) and its page (index.html) to DIR"
    )
    parser.add_argument(
        "--check-ledger",
        metavar="FILE",
        type=Path,
        help="fail where FILE differs from the ledger of this run; times are not compared",
    )
    parser.add_argument(
        "--write-ledger", metavar="FILE", type=Path, help="write the ledger without times, to be committed"
    )


def is_wanted(arguments: argparse.Namespace) -> bool:
    """Return whether an option needs the ledger, and so witnesses and cores."""
    return any(getattr(arguments, name) is not None for name in ("report", "check_ledger", "write_ledger"))


def prepare(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Mapping[str, object] | None:
    """Check the options before the proofs start, and return the committed ledger where one is named (SystemExit 2)."""
    if arguments.only and (arguments.check_ledger is not None or arguments.write_ledger is not None):
        parser.error("--check-ledger and --write-ledger need all theorems; leave out --only")
    try:
        if arguments.report is not None:
            arguments.report.mkdir(parents=True, exist_ok=True)
        return None if arguments.check_ledger is None else read(arguments.check_ledger)
    except UnreadableLedger as problem:
        parser.error(f"--check-ledger {problem}; write one with 'tpinit prove --write-ledger FILE'")
    except OSError as problem:
        parser.error(f"--report {arguments.report}: {problem.strerror}; give a directory that can be written to")


def report(
    arguments: argparse.Namespace,
    committed: Mapping[str, object] | None,
    results: Sequence[TheoremResult],
    started: float,
) -> list[str]:
    """Make the ledger of the results, write and compare it as the options say, and return the problems as text.

    Raises OSError where a file can't be written.
    """
    names = [result.name for result in results]
    needs = needed_by_each(names, arguments.jobs)
    entire = ledger(THEOREMS, results, needs, time.perf_counter() - started)
    problems = [] if arguments.only else missing(needs, entire)
    if arguments.report is not None:
        (arguments.report / "ledger.json").write_text(text(entire), encoding="utf-8")
        (arguments.report / "index.html").write_text(page(entire), encoding="utf-8")
    if arguments.write_ledger is not None:
        arguments.write_ledger.write_text(text(without_times(entire)), encoding="utf-8")
    if committed is not None:
        different = [f"{arguments.check_ledger}: {line}" for line in differences(committed, entire)]
        if different:
            different.append(
                f"if the change is intended, commit it: tpinit prove --write-ledger {arguments.check_ledger}"
            )
        problems += different
    return problems
