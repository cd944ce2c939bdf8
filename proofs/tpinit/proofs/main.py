"""`tpinit prove`: prove every theorem, report progress, print the table and the theorems that are not proven."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import tpinit.proofs.theorems  # noqa: F401 - registers the theorems
from tpinit.proofs import lint, report
from tpinit.proofs.certificates import refuting
from tpinit.proofs.certificates.check import RejectedCertificate
from tpinit.proofs.claims import THEOREMS, Verdict
from tpinit.proofs.ledger.exporting import write_smt2
from tpinit.proofs.processes import StoppedBySignal, WorkerDied, recording_signals, stop_where_asked
from tpinit.proofs.running import TheoremResult, run

__all__ = ["prove"]

_DESCRIPTION = """\
Prove the contract and the shipped source. Every theorem is decided for all inputs, its premises are shown
to be satisfiable, and its control, a contract or a source that is wrong in one place, must be refuted."""

_EPILOG = """\
exit codes: 0 every theorem is proven. 1 a theorem is refuted, undecided or vacuous, or its control survives; a
theorem is not registered or a clause has no theorem (not checked with --only); or the ledger differs from the
committed one. 2 a usage error. 130 ended by Ctrl-C, 143 by SIGTERM; no process is left."""


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes (1 or more)")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tpinit prove",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--only", metavar="NAME", action="append", help="a theorem's name, or a pattern such as 'shipped_*'; repeatable"
    )
    jobs = os.cpu_count() or 1
    parser.add_argument("--jobs", metavar="N", type=_positive, default=jobs, help=f"processes (here: {jobs})")
    parser.add_argument("--list", action="store_true", help="list the theorems and their clauses, and prove nothing")
    parser.add_argument(
        "--certificates",
        metavar="DIR",
        type=Path,
        help="write the certificates of the propositional theorems (CNF, DRUP, README.txt), and prove nothing else",
    )
    parser.add_argument(
        "--smt2", metavar="DIR", type=Path, help="write every query as an SMT-LIB 2 file to DIR, and prove nothing"
    )
    report.add_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress, the table only")
    return parser


def _chosen(parser: argparse.ArgumentParser, patterns: Sequence[str] | None) -> list[str]:
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in THEOREMS):
            parser.error(f"--only {pattern}: no theorem has that name; see 'tpinit prove --list'")
    order = sorted(THEOREMS.values(), key=lambda theorem: [int(part) for part in theorem.clause.split(".")])
    return [t.name for t in order if not patterns or any(fnmatchcase(t.name, pattern) for pattern in patterns)]


def prove(argv: Sequence[str]) -> int:
    """Run `tpinit prove`. Return 0 when every chosen theorem is proven, else 1 (SystemExit 2 on a usage error)."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    names = _chosen(parser, arguments.only)
    if arguments.list:
        for name in names:
            print(f"{THEOREMS[name].clause:5} {name}")
        return 0
    if arguments.certificates is not None:
        return _write_certificates(parser, arguments.certificates)
    if arguments.smt2 is not None:
        return _write_smt2(parser, arguments.smt2, names)
    committed = report.prepare(parser, arguments)
    finished: list[TheoremResult] = []
    try:
        with recording_signals():
            return _prove(arguments, names, committed, finished)
    except StoppedBySignal as stopped:
        why, code = f"stopped by {stopped}", 128 + stopped.signal
    except WorkerDied:
        why, code = "a worker process was killed or ran out of memory (fix: --jobs 1)", 1
    decided = f"{len(finished)} of {len(names)} theorems were decided, nothing is concluded"
    print(f"tpinit: error: {why}; {decided}", file=sys.stderr)
    return code


def _prove(
    arguments: argparse.Namespace,
    names: Sequence[str],
    committed: Mapping[str, object] | None,
    finished: list[TheoremResult],
) -> int:
    """Prove the named theorems, print and write what was asked for, and return the exit code."""
    started = time.perf_counter()

    def progress(result: TheoremResult) -> None:
        finished.append(result)
        if not arguments.quiet:
            told = f"[{len(finished)}/{len(names)}] {result.name}: {result.verdict.value}"
            print(told, file=sys.stderr, flush=True)

    results = run(names, arguments.jobs, progress, report.is_wanted(arguments))
    _print_table(results)
    not_proven = [result for result in results if result.verdict is not Verdict.PROVED]
    for result in not_proven:
        print(f"\n{result.verdict.value.upper()}: {result.name}\n  {THEOREMS[result.name].statement}")
        print(textwrap.fill(result.detail, 100, initial_indent="  ", subsequent_indent="  "))
    problems = [] if arguments.only else lint.problems(lint.FOLDER, THEOREMS)
    if report.is_wanted(arguments):
        problems += report.report(arguments, committed, results, started)
    stop_where_asked()
    for problem in problems:
        print(f"\nPROBLEM: {problem}")
    seconds = time.perf_counter() - started
    proven = len(results) - len(not_proven)
    print(
        f"\n{proven} of {len(results)} theorems proven, every control refuted, in {seconds:.1f} s"
        if not not_proven
        else f"\n{proven} of {len(results)} theorems proven, {len(not_proven)} not, in {seconds:.1f} s"
    )
    return 1 if not_proven or problems else 0


def _write_smt2(parser: argparse.ArgumentParser, directory: Path, names: Sequence[str]) -> int:
    try:
        count = write_smt2(directory, names)
    except OSError as problem:
        parser.error(f"--smt2 {directory}: {problem.strerror}; give a directory that can be written to")
    print(f"{count} queries written to {directory}; the comments of each state its claim and the expected answer")
    return 0


def _write_certificates(parser: argparse.ArgumentParser, directory: Path) -> int:
    try:
        written = refuting.write(directory)
    except OSError as problem:
        parser.error(f"--certificates {directory}: {problem.strerror}; give a directory that can be written to")
    except (refuting.NoCertificate, RejectedCertificate) as problem:
        print(f"nothing was written: {problem}", file=sys.stderr)
        return 1
    for name, size in written.items():
        steps = size.lemmas + size.deletions
        print(f"{name}: {size.variables} variables, {size.clauses} clauses, {steps} proof steps, verified")
    print(f"{directory / 'README.txt'} explains how to check them")
    return 0


def _print_table(results: Sequence[TheoremResult]) -> None:
    width = max(len(result.name) for result in results) + 2
    print(f"{'clause':7}{'theorem':{width}}{'verdict':10}{'seconds':>8}  decided by")
    for result in results:
        theorem = THEOREMS[result.name]
        verdict = f"{result.verdict.value:10}{result.seconds:>8.2f}"
        print(f"{theorem.clause:7}{result.name:{width}}{verdict}  {_oracles(result)}")
        print(textwrap.fill(theorem.statement, 110, initial_indent=" " * 9, subsequent_indent=" " * 9))


def _oracles(result: TheoremResult) -> str:
    parts = []
    for name, oracle in result.oracles.items():
        decided = oracle.result
        mark = "" if decided.verdict is Verdict.PROVED else f" {decided.verdict.value.upper()}"
        some = f", {result.claims - len(decided.skipped)} of {result.claims} claims" if decided.skipped else ""
        parts.append(f"{name}{mark} ({decided.checked:,} {decided.unit}{some})")
    return ", ".join(parts)
