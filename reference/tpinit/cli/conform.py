"""`tpinit conform`: tests an implementation of the contract against the conformance vectors."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tpinit.cli.usage import UsageError

if TYPE_CHECKING:
    from tpinit.conformance.protocol import Adapter
    from tpinit.conformance.report import Report
    from tpinit.conformance.runner import RunOptions
    from tpinit.conformance.vectors import Vector

__all__ = ["add_arguments", "run"]

KIT_BROKEN = 3
BROKEN = 4
SEVERITY = (0, 1, BROKEN, KIT_BROKEN)  # the exit code for several implementations is the one furthest right

DESCRIPTION = """\
Run every conformance vector against an implementation of the contract, and report each wrong answer with a command
that runs that one vector again."""

EPILOG = """\
IMPL is one of

  reference                    the reference resolver; 'deepspeed' and the kit's other adapters are named likewise
  py: PKG:OBJECT               a Python function answer(case) -> result, served in a process of its own
  cmd: COMMAND                 a program in any language that speaks JSON lines over stdio (docs/conformance.md)
  ranks: COMMAND               the same, with one process per rank, in worlds of up to 4 ranks

examples:
  tpinit conform --impl reference
  tpinit conform --impl 'cmd: node impl.js' --smoke
  tpinit conform --impl 'py: mypackage.tpinit:adapter' --known known.json --junit report.xml
  tpinit conform --impl 'cmd: node impl.js' --search 5000 --found found.jsonl
  tpinit conform --impl reference --impl 'cmd: node impl.js' --html compare.html

exit codes: 0 every answer agrees with the contract (or is permitted by a declared choice, or is a known failure), 1 an
answer disagrees, 2 a usage error, 3 the kit itself is broken, 4 the implementation is broken: it does not start,
crashes, hangs, answers garbage, answers nothing, or its answers depend on earlier cases. 4 is reported before 1.
"""


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number (1 or more)")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the subcommand and its arguments."""
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument(
        "--impl", metavar="IMPL", action="append", default=[], help="the implementation to test; repeatable"
    )
    which = parser.add_argument_group("which vectors")
    which.add_argument("--smoke", action="store_true", help="the smoke subset only: every row and every violation")
    which.add_argument("--only", metavar="ID", action="append", default=[], help="only this vector; repeatable")
    which.add_argument("--vectors", metavar="FILE", help="the vectors of this file instead of the kit's")
    how = parser.add_argument_group("how to run and judge")
    how.add_argument(
        "--dialect", metavar="NAME", default="documented", help="the dialect to judge by (default: documented)"
    )
    how.add_argument("--no-choices", action="store_true", help="count declared permissive choices as wrong")
    how.add_argument("--strict", action="store_true", help="count a field that an answer leaves out as wrong")
    how.add_argument(
        "--known", metavar="FILE", help="a file of known failures: exactly these wrong answers are expected"
    )
    how.add_argument("--timeout", metavar="S", type=_seconds, default=10.0, help="seconds for a case (default: 10)")
    how.add_argument("--fresh", action="store_true", help="a new process for every case")
    how.add_argument(
        "--passes", metavar="N", type=int, choices=(1, 2), default=2, help="1: skip the second run in reverse order"
    )
    how.add_argument("--jobs", metavar="N", type=_count, default=1, help="processes at a time (default: 1)")
    beyond = parser.add_argument_group("beyond the vectors")
    beyond.add_argument(
        "--search", metavar="N", type=_count, help="run N cases that Hypothesis generates, instead of the vectors"
    )
    beyond.add_argument("--found", metavar="FILE", help="write the cases that the search finds as vectors")
    beyond.add_argument("--seed", metavar="N", type=int, default=0, help="the seed of the search (default: 0)")
    out = parser.add_argument_group("reports")
    out.add_argument("--json", metavar="FILE", help="the report as JSON, for one implementation ('-': stdout)")
    out.add_argument("--junit", metavar="FILE", help="the reports as JUnit XML")
    out.add_argument("--html", metavar="FILE", help="the reports side by side, as one HTML page")
    out.add_argument("--compare", metavar="FILE", action="append", default=[], help="add a JSON report to --html")
    out.add_argument("--limit", metavar="N", type=_count, default=20, help="divergences to print (default: 20)")


def run(arguments: argparse.Namespace) -> int:
    """Run the vectors, report, and return the exit code. Raises UsageError for malformed options."""
    from tpinit.conformance.protocol import KitError

    def terminated(*_: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)  # so that the `finally` blocks stop the implementations

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        return _run(arguments)
    except KitError as error:
        print(f"tpinit: error: the kit is broken: {error}", file=sys.stderr)
        return KIT_BROKEN
    except (UsageError, BrokenPipeError):
        raise
    except Exception:  # a bug of the kit must not look like a bug of the implementation
        import traceback

        traceback.print_exc()
        print("tpinit: error: the kit is broken: please report the lines above", file=sys.stderr)
        return KIT_BROKEN
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: argparse.Namespace) -> int:
    from tpinit.conformance.dialects import DIALECTS

    if arguments.dialect not in DIALECTS:
        raise UsageError(f"--dialect {arguments.dialect!r} is unknown. Legal: {', '.join(DIALECTS)}")
    if not arguments.impl and not arguments.compare:
        raise UsageError("no implementation to test. fix: --impl reference, or see 'tpinit conform --help'")
    if arguments.compare and not arguments.html:
        raise UsageError("--compare adds reports to a page. fix: --html FILE")
    if arguments.json and len(arguments.impl) != 1:
        raise UsageError("--json takes the report of one implementation. fix: one --impl per run, then --compare")
    _writable(arguments)
    openers = [(impl, _opener(impl, arguments)) for impl in arguments.impl]
    if arguments.search:
        return max((_search(impl, opener, arguments) for impl, opener in openers), key=SEVERITY.index)
    if arguments.found:
        raise UsageError("--found is written by a search. fix: add --search N")
    return _conform(openers, arguments)


def _writable(arguments: argparse.Namespace) -> None:
    for name in ("json", "junit", "html", "found"):
        path = getattr(arguments, name)
        if path and path != "-" and not Path(path).resolve().parent.is_dir():
            raise UsageError(f"--{name} {path!r}: there is no such folder")


def _opener(impl: str, arguments: argparse.Namespace) -> Callable[[], Adapter]:
    from tpinit.conformance.adapters import AdapterError, opener

    if impl.partition(":")[0].strip() not in ("cmd", "py", "ranks"):
        for option, given in (("fresh", arguments.fresh), ("jobs", arguments.jobs > 1)):
            if given:
                raise UsageError(f"--{option} is for 'py: ...', 'cmd: ...' and 'ranks: ...', not for {impl!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")  # finds packages in the current folder, as python -m does
    try:
        return opener(impl, fresh=arguments.fresh)
    except AdapterError as error:
        raise UsageError(f"--impl {impl!r}: {error}") from error


def _conform(openers: Sequence[tuple[str, Callable[[], Adapter]]], arguments: argparse.Namespace) -> int:
    from tpinit.conformance import known, report
    from tpinit.conformance.runner import conform
    from tpinit.conformance.terminal import text
    from tpinit.conformance.vectors import load

    vectors = _vectors(arguments)
    try:
        earlier = [report.read(path) for path in arguments.compare]
        ids = {vector.id for vector in (*load(), *vectors)}
        failures = known.read(arguments.known, ids) if arguments.known else ()
    except (report.ReportError, known.KnownFailuresError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    reports = []
    for impl, opener in openers:
        made = known.apply(conform(opener, vectors, _options(impl, arguments)), failures)
        reports.append(made)
        if arguments.json != "-":
            print(text(made, arguments.limit), flush=True)
    _write(reports, earlier, arguments)
    return max((report.exit_code(made) for made in (*reports, *earlier)), key=SEVERITY.index)


def _options(impl: str, arguments: argparse.Namespace) -> RunOptions:
    from tpinit.conformance.runner import RunOptions

    selection = "smoke" if arguments.smoke else "all"
    return RunOptions(
        dialect=arguments.dialect,
        timeout=arguments.timeout,
        passes=arguments.passes,
        jobs=arguments.jobs,
        strict=arguments.strict,
        choices=not arguments.no_choices,
        spelled=impl,
        selection=" ".join(filter(None, (selection, arguments.vectors and "of a file", arguments.only and "chosen"))),
    )


def _vectors(arguments: argparse.Namespace) -> tuple[Vector, ...]:
    from tpinit.conformance import vector_files
    from tpinit.conformance.protocol import KitError
    from tpinit.conformance.runner import check_vectors
    from tpinit.conformance.vectors import load

    try:
        vectors = vector_files.read(arguments.vectors) if arguments.vectors else load()
        if arguments.vectors:
            check_vectors(vectors)
    except (vector_files.VectorFileError, KitError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error
    unknown = sorted(set(arguments.only) - {vector.id for vector in vectors})
    if unknown:
        raise UsageError(f"none of the {len(vectors)} vectors has the id {', '.join(map(repr, unknown))}")
    chosen = tuple(vector for vector in vectors if not arguments.only or vector.id in arguments.only)
    chosen = tuple(vector for vector in chosen if vector.smoke or not arguments.smoke)
    if not chosen:
        raise UsageError("no vector is left to run. fix: leave out --smoke")
    return chosen


def _write(reports: Sequence[Report], earlier: Sequence[Report], arguments: argparse.Namespace) -> None:
    from tpinit.conformance import report
    from tpinit.conformance.html import page
    from tpinit.conformance.junit import junit

    try:
        if arguments.json == "-":
            print(json.dumps(report.to_json(reports[0]), indent=1))
        elif arguments.json:
            report.write(reports[0], arguments.json)
        if arguments.junit:
            report.write_text(junit(reports), arguments.junit)
        if arguments.html:
            report.write_text(page([*earlier, *reports]), arguments.html)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error


def _search(impl: str, opener: Callable[[], Adapter], arguments: argparse.Namespace) -> int:
    """Search; return 1 if a case is found, 4 if the implementation is broken or does not start, else 0."""
    if find_spec("hypothesis") is None:
        raise UsageError("--search needs hypothesis, not installed here. fix: pip install 'tpinit[conformance]'")
    from tpinit.conformance import report, vector_files
    from tpinit.conformance.protocol import Broken
    from tpinit.conformance.search import search

    try:
        made = search(
            opener,
            dialect=arguments.dialect,
            examples=arguments.search,
            timeout=arguments.timeout,
            strict=arguments.strict,
            choices=not arguments.no_choices,
            seed=arguments.seed,
        )
    except Broken as error:
        print(f"{impl}: broken: {error}")
        return BROKEN
    for vector, case in made.found:
        print(f"{case.verdict.value}: {vector.id} (row {vector.row})\n  input: {json.dumps(vector.input)}")
        for difference in case.differences:
            expected, given = json.dumps(difference.expected), json.dumps(difference.given)
            print(f"  {difference.field}: expected {expected}, given {given}")
        if not case.differences:
            print(f"  {case.detail or json.dumps(case.answer)}")
    found = len(made.found)
    print(f"{made.who.name} {made.who.version}: {made.asked} cases asked, {made.skipped} skipped, {found} found")
    if arguments.found and found:
        vector_files.write([vector for vector, _ in made.found], arguments.found)
        print(f"again: tpinit conform --impl '{impl}' --vectors {arguments.found}")
    broken = any(case.verdict in report.BROKEN for _, case in made.found)
    return BROKEN if broken or made.asked == made.skipped else int(found > 0)
