"""Compiling the Gallina sources: coqc for the proofs, coqchk for what it made, ocamlopt for the extracted program.

Everything is built in a folder of its own, from copies: the tree of the project gets no compiled file.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from tpinit.proofs.coq.sources import CoqSource, enclosing, statements

__all__ = [
    "ASSUMPTIONS",
    "LIBRARY",
    "CoqFailure",
    "CoqToolMissing",
    "assumptions_source",
    "check_compiled",
    "compile_sources",
    "extract",
    "missing_tools",
    "open_assumptions",
    "run_tool",
]

LIBRARY = "TPInit"
ASSUMPTIONS = "Assumptions.v"
CLOSED = "Closed under the global context"
TOOLS = ("coqc", "coqchk", "ocamlopt")
SECONDS = 1200  # for one tool; a proof that loops must end

# What coqchk must say of everything that it has loaded, Coq's own library included.
_CHECKED = (
    "Axioms",
    "Constants/Inductives relying on type-in-type",
    "Constants/Inductives relying on unsafe (co)fixpoints",
    "Inductives whose positivity is assumed",
)


class CoqToolMissing(Exception):
    """A program of Coq or OCaml is not installed."""


class CoqFailure(Exception):
    """Coq rejects a file: its name, the line, the statement that the line belongs to, and Coq's message."""

    def __init__(self, name: str, line: int, statement: str, message: str) -> None:
        super().__init__(f"{name}: line {line}, in {statement or 'no statement'}: {message}")
        self.name = name
        self.line = line
        self.statement = statement
        self.message = message


def missing_tools() -> list[str]:
    """Return which of coqc, coqchk and ocamlopt are not on the path."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def run_tool(command: Sequence[str | Path], folder: Path) -> tuple[int, str]:
    """Run a tool in a folder; return its exit status, and what it wrote to stdout and stderr.

    Raises CoqToolMissing where the tool is not installed, subprocess.TimeoutExpired after `SECONDS`.
    """
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise CoqToolMissing(
            f"{command[0]} is not installed. fix: as root, apt-get install coq ocaml-nox (Debian 12 has Coq 8.16)"
        ) from None
    return done.returncode, done.stdout


def compile_sources(sources: Iterable[CoqSource], into: Path) -> dict[str, str]:
    """Write sources into a folder and compile each one, in the given order; return what Coq printed, by file.

    Raises CoqFailure at the first file that Coq rejects, CoqToolMissing without coqc.
    """
    into.mkdir(parents=True, exist_ok=True)
    printed = {}
    for source in sources:
        (into / source.name).write_text(source.text, encoding="utf-8", newline="\n")
        (into / f"{source.module}.vo").unlink(missing_ok=True)
        status, output = run_tool(["coqc", "-q", "-Q", ".", LIBRARY, source.name], into)
        if status != 0:
            raise _failure(source, output)
        printed[source.name] = output
    return printed


def _failure(source: CoqSource, output: str) -> CoqFailure:
    place = re.search(rf'File "\./{re.escape(source.name)}", line (\d+)', output)
    line = int(place[1]) if place else 0
    message = output[place.end() :].partition("\n")[2] if place else output
    return CoqFailure(source.name, line, enclosing(source, line), " ".join(message.split())[:400])


# --- assumptions ---------------------------------------------------------------------------------------


def assumptions_source(sources: Iterable[CoqSource]) -> CoqSource:
    """Return a file that prints, for everything in the sources that has a proof, what the proof assumes."""
    sources = [source for source in sources if statements(source)]
    modules = " ".join(source.module for source in sources)
    asked = [f"Print Assumptions {source.module}.{name}." for source in sources for name in statements(source)]
    return CoqSource(ASSUMPTIONS, "\n".join([f"From {LIBRARY} Require Import {modules}.", *asked, ""]))


def open_assumptions(asked: CoqSource, printed: str) -> list[str]:
    """Return what Coq's answers to `assumptions_source` leave open, one line each; an empty list is a pass.

    Each question must have one answer, and each answer must be "Closed under the global context".
    """
    names = re.findall(r"^Print Assumptions ([\w.]+)\.$", asked.text, re.MULTILINE)
    answers = [block.strip() for block in re.split(rf"^(?={CLOSED}$|\w*Axioms:$|\S+ Variables:$)", printed, flags=re.M)]
    answers = [answer for answer in answers if answer]
    if len(answers) != len(names):
        return [f"{len(names)} questions about assumptions have {len(answers)} answers: {printed[:400]}"]
    return [
        f"{name} is not closed: {' '.join(answer.split())}"
        for name, answer in zip(names, answers, strict=True)
        if answer != CLOSED
    ]


def check_compiled(modules: Iterable[str], into: Path) -> list[str]:
    """Check compiled modules, and all that they load, with coqchk; return what is wrong, one line each.

    coqchk is a second, smaller checker: it reads the compiled files and not the tactics that made them.
    """
    names = [f"{LIBRARY}.{module}" for module in modules]
    status, output = run_tool(["coqchk", "-silent", "-o", "-Q", ".", LIBRARY, *names], into)
    if status != 0:
        return [f"coqchk fails: {output[-400:]}"]
    return [
        f"coqchk does not say '{what}: <none>': {output[-800:]}"
        for what in _CHECKED
        if not re.search(rf"^\* {re.escape(what)}: <none>\s*$", output, re.MULTILINE)
    ]


# --- extraction ----------------------------------------------------------------------------------------


def extract(reader: Path, into: Path) -> Path:
    """Compile the extracted definitions with the reader of questions, `main.ml`; return the program.

    `Extract.v` has been compiled in the folder before. Raises RuntimeError where ocamlopt rejects the program.
    """
    shutil.copy(reader, into / "main.ml")
    program = into / "decide"
    command = [
        "ocamlopt",
        "-w",
        "+a-4-9-32..42-44-45-48-70",
        "-o",
        program.name,
        "contract.mli",
        "contract.ml",
        "main.ml",
    ]
    status, output = run_tool(command, into)
    if status != 0:
        raise RuntimeError(f"ocamlopt rejects the extracted program: {output[-400:]}")
    return program
