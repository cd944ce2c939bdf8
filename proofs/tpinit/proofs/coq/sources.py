"""The Gallina sources as text: which files, in which order, which theorems with which sentence, and what is refused.

Coq decides what is proven; this module reads only what Coq does not say: that each theorem has an English sentence and
its clause, and that no file uses a word that would make a proof mean less.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tpinit.proofs.coq.generating import generated

__all__ = [
    "CLAUSES",
    "CoqSource",
    "CoqTheorem",
    "compile_order",
    "enclosing",
    "problems",
    "read",
    "statements",
    "theorems",
]

CLAUSES: tuple[str, ...] = tuple(f"6.{item}" for item in range(1, 10))

# Commands that state something without proof, or switch a check of the kernel off, or replace an extracted constant.
_REFUSED = (
    r"Admitted|admit|give_up|Axioms?|Parameters?|Conjectures?|Abort|Obligations?|Bypass|bypass_check|Unset|Reset"
    r"|Guard|Positivity|Universe|Primitive|Register|Load|Declare|Add|Extract|native_compute|Drop|Redirect|Cd"
)
_STATEMENT = re.compile(
    r"^(?:#\[\w+\] )?(Theorem|Lemma|Corollary|Fact|Remark|Proposition|Instance)\s+(\w+)", re.MULTILINE
)
_REQUIRE = re.compile(r"^From TPInit Require Import ([\w\s]+)\.", re.MULTILINE)
_COMMENT = re.compile(r"\(\*.*?\*\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class CoqSource:
    """One `.v` file: its name with the suffix, its text, and the modules of the development that it requires."""

    name: str
    text: str

    @property
    def module(self) -> str:
        """The module that Coq makes of the file."""
        return self.name.removesuffix(".v")

    @property
    def requires(self) -> tuple[str, ...]:
        """The modules of the development that the file requires."""
        return tuple(word for found in _REQUIRE.findall(self.text) for word in found.split())


@dataclass(frozen=True, slots=True)
class CoqTheorem:
    """One `Theorem`: where it stands, the clause of contract section 6 that it discharges, and its English sentence."""

    module: str
    name: str
    clause: str
    english: str


def read(folder: Path) -> tuple[CoqSource, ...]:
    """Read all `.v` files of a folder, in an order in which each one comes after those that it requires.

    Raises OSError where the folder can't be read, ValueError where a file requires one that is not there.
    """
    found = [CoqSource(path.name, path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.v"))]
    return compile_order(found)


def compile_order(sources: Iterable[CoqSource]) -> tuple[CoqSource, ...]:
    """Sort sources so that each one comes after those that it requires.

    Raises ValueError where a required file is missing, or files require each other in a circle.
    """
    left, ordered = list(sources), list[CoqSource]()
    while left:
        done = {source.module for source in ordered}
        ready = [source for source in left if done.issuperset(source.requires)]
        if not ready:
            lacks = {source.name: sorted(set(source.requires) - done) for source in left}
            raise ValueError(f"these files require what is not there before them: {lacks}")
        ordered += ready
        left = [source for source in left if source not in ready]
    return tuple(ordered)


def statements(source: CoqSource) -> tuple[str, ...]:
    """Return the names of everything in the file that has a proof, in order."""
    return tuple(name for _, name in _STATEMENT.findall(_without_comments(source.text)))


def theorems(sources: Iterable[CoqSource]) -> tuple[CoqTheorem, ...]:
    """Return every `Theorem` with the sentence of the comment right above it, or with empty strings without one."""
    found = []
    for source in sources:
        lines = source.text.splitlines()
        for place, line in enumerate(lines):
            match = re.match(r"Theorem (\w+)", line)
            if match is not None:
                clause, english = _sentence(lines[:place])
                found.append(CoqTheorem(source.module, match[1], clause, english))
    return tuple(found)


def _sentence(above: list[str]) -> tuple[str, str]:
    """Return clause and sentence of the comment that ends on the last line, or empty strings."""
    if not above or not above[-1].endswith("*)"):
        return "", ""
    first = next(place for place in range(len(above) - 1, -1, -1) if above[place].startswith("(*"))
    text = " ".join(line.strip() for line in above[first:]).removeprefix("(*").removesuffix("*)").strip()
    match = re.fullmatch(r"(6\.\d)(?:, [^:]*)?: (\S.*)", text)
    return ("", "") if match is None else (match[1], match[2])


def problems(sources: Iterable[CoqSource]) -> list[str]:
    """Return what is wrong with the sources before Coq sees them; an empty list is a pass.

    A refused word, a theorem without its sentence and clause, a clause without a theorem, a `Theorem` in a generated
    file, and a statement whose proof does not end in Qed.
    """
    sources = tuple(sources)
    found: list[str] = []
    for source in sources:
        found += _refused(source)
    listed = theorems(sources)
    for theorem in listed:
        if theorem.clause not in CLAUSES:
            found.append(
                f"{theorem.module}.v: Theorem {theorem.name} has no comment right above it that says '6.N: sentence'"
            )
        if f"{theorem.module}.v" in generated():
            found.append(f"{theorem.module}.v: Theorem {theorem.name} stands in a generated file, which holds data")
    found += [
        f"no theorem discharges clause {clause}" for clause in CLAUSES if clause not in {one.clause for one in listed}
    ]
    return found


def _refused(source: CoqSource) -> list[str]:
    text = _without_comments(source.text)
    found = [
        f"{source.name}: line {text.count(chr(10), 0, match.start()) + 1}: '{match[0]}' is refused: "
        "prove it, or leave it out"
        for match in re.finditer(rf"(?<![\w.'])(?:{_REFUSED})(?![\w'])", text)
    ]
    opened = len(re.findall(r"\bProof\b", text))
    closed = len(re.findall(r"\bQed\.", text))
    stated = sum(kind != "Instance" for kind, _ in _STATEMENT.findall(text))
    if not opened == closed == stated:
        found.append(f"{source.name}: {stated} statements, {opened} Proof and {closed} Qed: each needs one of each")
    return found


def enclosing(source: CoqSource, line: int) -> str:
    """Return the name of the last statement that begins at or before a line (from 1), or an empty string."""
    names = [
        match[2] for match in _STATEMENT.finditer(source.text) if source.text.count("\n", 0, match.start()) + 1 <= line
    ]
    return names[-1] if names else ""


def _without_comments(text: str) -> str:
    """Blank the comments; lines keep their numbers. Nested comments are refused by what is left of them."""
    return _COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
