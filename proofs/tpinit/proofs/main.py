"""`tpinit prove`: prove every theorem, show each as it ends, print the table, tell what fell."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import tpinit.proofs.theorems  # noqa: F401 - registers the theorems
from tpinit.proofs import lint, report
from tpinit.proofs.certificates import refuting
from tpinit.proofs.certificates.check import Rejected
from tpinit.proofs.claims import THEOREMS, Verdict
from tpinit.proofs.ledger.exporting import write_smt2
from tpinit.proofs.running import Record, run

__all__ = ["prove"]

_DESCRIPTION = """\
Prove the contract and the shipped resolver. Every theorem is decided for all inputs, its premises are
shown satisfiable, and a control, a contract or a source that is wrong in one place, must be refuted."""

_EPILOG = """\
exit codes: 0 all proven, 1 a theorem fell, was not decided, was vacuous, or its control survived, a theorem is
left out or a clause unnamed (not looked at with --only), or the ledger is not the committed one; 2 a usage error."""


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
    """Prove what the arguments ask for. Return 0 when all of it is proven, else 1 (SystemExit 2 on usage)."""
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
    started, finished = time.perf_counter(), 0

    def progress(record: Record) -> None:
        nonlocal finished
        finished += 1
        if not arguments.quiet:
            print(f"[{finished}/{len(names)}] {record.name}: {record.verdict.value}", file=sys.stderr, flush=True)

    records = run(names, arguments.jobs, progress, report.is_wanted(arguments))
    _print_table(records)
    fallen = [record for record in records if record.verdict is not Verdict.PROVED]
    for record in fallen:
        print(f"\n{record.verdict.value.upper()}: {record.name}\n  {THEOREMS[record.name].statement}")
        print(textwrap.fill(record.detail, 100, initial_indent="  ", subsequent_indent="  "))
    problems = [] if arguments.only else lint.problems(lint.FOLDER, THEOREMS)
    if report.is_wanted(arguments):
        problems += report.report(arguments, committed, records, started)
    for problem in problems:
        print(f"\nPROBLEM: {problem}")
    seconds = time.perf_counter() - started
    proven = len(records) - len(fallen)
    print(
        f"\n{proven} of {len(records)} theorems proven, every control refuted, in {seconds:.1f} s"
        if not fallen
        else f"\n{proven} of {len(records)} theorems proven, {len(fallen)} not, in {seconds:.1f} s"
    )
    return 1 if fallen or problems else 0


def _write_smt2(parser: argparse.ArgumentParser, directory: Path, names: Sequence[str]) -> int:
    try:
        count = write_smt2(directory, names)
    except OSError as problem:
        parser.error(f"--smt2 {directory}: {problem.strerror}; give a directory that can be written to")
    print(f"{count} queries written to {directory}; each says in its comments what it asks, and the answer claimed")
    return 0


def _write_certificates(parser: argparse.ArgumentParser, directory: Path) -> int:
    try:
        written = refuting.write(directory)
    except OSError as problem:
        parser.error(f"--certificates {directory}: {problem.strerror}; give a directory that can be written to")
    except (refuting.Refused, Rejected) as problem:
        print(f"nothing was written: {problem}", file=sys.stderr)
        return 1
    for name, said in written.items():
        steps = said.lemmas + said.deletions
        print(f"{name}: {said.variables} variables, {said.clauses} clauses, {steps} proof steps, verified")
    print(f"{directory / 'README.txt'} says how to check them")
    return 0


def _print_table(records: Sequence[Record]) -> None:
    width = max(len(record.name) for record in records) + 2
    print(f"{'clause':7}{'theorem':{width}}{'verdict':10}{'seconds':>8}  decided by")
    for record in records:
        theorem = THEOREMS[record.name]
        verdict = f"{record.verdict.value:10}{record.seconds:>8.2f}"
        print(f"{theorem.clause:7}{record.name:{width}}{verdict}  {_oracles(record)}")
        print(textwrap.fill(theorem.statement, 110, initial_indent=" " * 9, subsequent_indent=" " * 9))


def _oracles(record: Record) -> str:
    said = []
    for name, oracle in record.oracles.items():
        result = oracle.result
        mark = "" if result.verdict is Verdict.PROVED else f" {result.verdict.value.upper()}"
        said.append(f"{name}{mark} ({result.checked:,} {result.unit})")
    return ", ".join(said)
