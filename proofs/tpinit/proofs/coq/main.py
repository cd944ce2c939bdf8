"""`python -m tpinit.proofs.coq`: generate the data of the kernel-checked core, check it, list its theorems."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tpinit.conformance.vectors import load, manifest, to_inputs
from tpinit.proofs.coq import building, comparing, generating, sources
from tpinit.proofs.coq.drawing import draw_inputs

__all__ = ["main"]

DRAWS = 100_000
SEED = 20_816

_DESCRIPTION = """\
The kernel-checked core: the contract in Gallina, its theorems proven in Coq, and the decision that Coq computes
compared with the resolver."""

_EPILOG = """\
check     compile everything with coqc, read what each proof assumes, check the compiled files with coqchk, extract
          the decision and compare it with the resolver on all conformance vectors and on drawn inputs
generate  write Vocabulary.v, Table.v and Prose.v from ROWS, RULES and DISAGREEMENTS
list      print every theorem with its clause of contract section 6 and its sentence

exit codes: 0 all of that holds; 1 something does not; 2 a usage error or a missing tool."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 where everything holds, 1 where something does not, 2 for a missing tool or folder."""
    parser = argparse.ArgumentParser(
        prog="python -m tpinit.proofs.coq",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("action", choices=("check", "generate", "list"))
    parser.add_argument("--folder", type=Path, default=Path("proofs/coq"), help="the sources (default: proofs/coq)")
    parser.add_argument("--into", type=Path, default=Path("build/coq"), help="where to build (default: build/coq)")
    parser.add_argument("--draws", type=_count, default=DRAWS, help=f"inputs to draw (default: {DRAWS})")
    parser.add_argument("--seed", type=_count, default=SEED, help=f"of the drawn inputs (default: {SEED})")
    options = parser.parse_args(arguments)
    if not (options.folder / "Contract.v").is_file():
        print(
            f"tpinit: {options.folder} does not hold the Coq development. fix: run it in a checkout of tpinit, "
            "or name the folder with --folder",
            file=sys.stderr,
        )
        return 2
    actions: dict[str, Callable[[argparse.Namespace], int]] = {"check": _check, "generate": _generate, "list": _list}
    try:
        return actions[options.action](options)
    except building.CoqToolMissing as problem:
        print(f"tpinit: {problem}", file=sys.stderr)
        return 2
    except OSError as problem:
        print(f"tpinit: {problem.filename}: {problem.strerror}", file=sys.stderr)
        return 2


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number (0 or more)")
    return int(text)


def _generate(options: argparse.Namespace) -> int:
    generating.write(options.folder)
    print(f"{', '.join(generating.generated())} written to {options.folder}")
    return 0


def _list(options: argparse.Namespace) -> int:
    found = sources.theorems(sources.read(options.folder))
    for theorem in found:
        print(f"{theorem.clause}  {theorem.module}.{theorem.name}\n     {theorem.english}")
    print(f"{len(found)} theorems")
    return 0


class _Refused(Exception):
    """A part of the check does not hold; the message is what to print."""


@contextmanager
def _part(name: str) -> Iterator[list[str]]:
    """Time a part; what it appends to the list is said behind its name."""
    start, said = time.perf_counter(), list[str]()
    yield said
    print(f"  {time.perf_counter() - start:6.1f} s  {name}: {' '.join(said)}", flush=True)


def _check(options: argparse.Namespace) -> int:
    missing = building.missing_tools()
    if missing:
        raise building.CoqToolMissing(
            f"{', '.join(missing)}: not installed. fix: as root, apt-get install coq ocaml-nox (Debian 12 has Coq 8.16)"
        )
    try:
        checked = _prove(options.folder, options.into)
        program = _compile_program(options.folder, options.into)
        _compare(program, options.seed, options.draws)
    except (_Refused, building.CoqFailure, ValueError, RuntimeError, subprocess.TimeoutExpired) as problem:
        print(f"refused: {problem}")
        return 1
    print(f"{checked} theorems checked by Coq's kernel, without axioms; Coq's decision is the resolver's")
    return 0


def _refuse(found: Sequence[object]) -> None:
    if found:
        more = [f"... and {len(found) - 5} more"] if len(found) > 5 else []
        raise _Refused("\n".join([*map(str, found[:5]), *more]))


def _prove(folder: Path, into: Path) -> int:
    """Check the sources, compile them, read the assumptions, run coqchk; return the number of theorems."""
    with _part("sources") as said:
        found = sources.read(folder)
        listed = sources.theorems(found)
        _refuse([f"{name} is not what ROWS and RULES give" for name in generating.differing(folder)])
        _refuse(sources.problems(found))
        said.append(f"{len(found)} files, {len(listed)} theorems, each with its sentence and clause; data as generated")
    with _part("coqc") as said:
        building.compile_sources(found, into)
        said.append("every file compiles")
    with _part("Print Assumptions") as said:
        asked = building.assumptions_source(found)
        printed = building.compile_sources([asked], into)[asked.name]
        _refuse(building.open_assumptions(asked, printed))
        names = sum(len(sources.statements(source)) for source in found)
        said.append(f"{names} theorems and lemmas are closed under the global context")
    with _part("coqchk") as said:
        _refuse(building.check_compiled([source.module for source in found if sources.statements(source)], into))
        said.append("every compiled file is accepted; no axiom in anything that is loaded")
    return len(listed)


def _compile_program(folder: Path, into: Path) -> Path:
    with _part("ocamlopt") as said:
        program = building.extract(folder / "main.ml", into)
        said.append("the extracted definitions compile")
    return program.resolve()


def _compare(program: Path, seed: int, draws: int) -> None:
    with _part("comparison") as said:
        vectors = [to_inputs(vector.input) for vector in load()]
        if len(vectors) != manifest()["counts"]["vectors"]:
            raise _Refused(
                f"{len(vectors)} vectors are installed, and the manifest counts others. fix: tpinit vectors --write"
            )
        _refuse(comparing.compare(program, vectors))
        _refuse(comparing.compare(program, draw_inputs(seed, draws)))
        _refuse(comparing.compare_arithmetic(program))
        worlds, dimensions = comparing.arithmetic_questions()
        said.append(
            f"the same on {len(vectors)} vectors, {draws} drawn inputs (seed {seed}), {len(worlds)} topologies and "
            f"{len(dimensions)} shards"
        )
