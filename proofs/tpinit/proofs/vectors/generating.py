"""Generate all vectors: the witness of every class and the boundaries, each with the answer of every oracle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from tpinit.conformance.oracle import ComparableDecision, oracle
from tpinit.conformance.vectors import Vector, answer_of, input_of, to_inputs
from tpinit.proofs.vectors.boundaries import boundaries
from tpinit.proofs.vectors.candidates import witnesses
from tpinit.proofs.vectors.classes import classes
from tpinit.proofs.vectors.families import FAMILIES
from tpinit.proofs.vectors.flags import VectorReason, reason
from tpinit.proofs.vectors.schema import SCHEMA
from tpinit.reference.resolver import resolve
from tpinit.spec.concrete import evaluate
from tpinit.spec.table import ROWS
from tpinit.spec.vocabulary import Decision, Inputs, Outcome, Violation, ViolationCode

__all__ = [
    "FORMAT",
    "ORACLES",
    "Oracle",
    "OraclesDisagree",
    "check",
    "committed",
    "generate",
    "hash_of",
    "spec_hash",
    "vector_of",
    "write",
]

FORMAT = "tpinit-vectors/1"
WORLDS = (2, 4)  # the worlds that real ranks are started in
FILES = ("vectors.jsonl", "manifest.json", "vector.schema.json")
SPEC = ("vocabulary.py", "table.py", "prose.py", "symbols.py", "model.py")

Oracle = Callable[[Inputs], "Decision | ComparableDecision"]
ORACLES: Mapping[str, Oracle] = {"z3": evaluate, "resolver": resolve, "brute force": oracle}


class OraclesDisagree(RuntimeError):
    """The oracles give different answers for one input, or two vectors have one id; no vector is written."""


# --- one vector ----------------------------------------------------------------------------------------


def vector_of(inputs: Inputs, why: VectorReason | None = None, oracles: Mapping[str, Oracle] = ORACLES) -> Vector:
    """Return the vector of an input, with the answer that every oracle gives and its reason.

    Raises OraclesDisagree, with the answer of each oracle, unless all answers are equal.
    """
    case = input_of(inputs)
    same = to_inputs(case)
    decisions = {name: _decision(ask(same)) for name, ask in oracles.items()}
    answers = {name: answer_of(decision, case["groups"]) for name, decision in decisions.items()}
    expected, *others = answers.values()
    if any(other != expected for other in others):
        table = "\n".join(f"  {name}: {_canonical(answer)}" for name, answer in answers.items())
        raise OraclesDisagree(f"the oracles disagree on {_canonical(case)}:\n{table}")
    why = why or reason(same, next(iter(decisions.values())))
    return Vector(
        id=_slug(expected, case),
        row=expected["row"],
        clauses=why.clauses,
        why={"flag": why.flag, "effect": why.effect},
        smoke=False,
        input=case,
        expected=expected,
    )


def _decision(answer: Decision | ComparableDecision) -> Decision:
    if isinstance(answer, Decision):
        return answer
    return Decision(
        answer.row,
        answer.outcome,
        answer.tp_size,
        answer.dtype,
        answer.tp_group,
        tuple(map(Violation, answer.codes)),
        answer.section_disabled,
    )


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _slug(expected: Mapping[str, Any], case: Mapping[str, Any]) -> str:
    """Return the id of a vector, from its answer and a hash of its input; it does not depend on other vectors."""
    codes = [code.lower().replace("_", "-") for code in expected["violations"]]
    word = codes[0] if codes else expected["outcome"].replace("_", "-")
    more = f"-and-{len(codes) - 1}-more" if len(codes) > 1 else ""
    return f"r{expected['row']:02}-{word}{more}-{hashlib.sha256(_canonical(case).encode()).hexdigest()[:8]}"


# --- all vectors ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Generated:
    """All vectors in the order of the file, and the manifest."""

    vectors: tuple[Vector, ...]
    manifest: Mapping[str, Any]

    def texts(self) -> dict[str, str]:
        """Return the text of each of the three files."""
        lines = (json.dumps(vector.to_json()) for vector in self.vectors)
        return {
            "vectors.jsonl": "".join(f"{line}\n" for line in lines),
            "manifest.json": json.dumps(self.manifest, indent=1) + "\n",
            "vector.schema.json": json.dumps(SCHEMA, indent=2) + "\n",
        }


def generate(oracles: Mapping[str, Oracle] = ORACLES) -> Generated:
    """Enumerate the classes, find their witnesses, add the boundaries, and ask every oracle about each input.

    Raises OraclesDisagree where the oracles disagree, UndecidedClasses where the solver can't decide whether
    there are more classes, MissingWitness where a class has no candidate. No file is written.
    """
    made: dict[str, Vector] = {}
    asked: dict[Inputs, str] = {}

    def add(inputs: Inputs, why: VectorReason | None) -> str:
        inputs = to_inputs(input_of(inputs))
        if inputs not in asked:
            vector = vector_of(inputs, why, oracles)
            if vector.id in made:
                raise OraclesDisagree(f"two vectors would be named {vector.id}: lengthen the hash in the name")
            made[vector.id], asked[inputs] = vector, vector.id
        return asked[inputs]

    families: dict[str, dict[str, str]] = {}
    for family in FAMILIES:
        found = witnesses(family, classes(family))
        families[family.name] = {signature: add(inputs, None) for signature, inputs in found.items()}
    edges = [add(inputs, why) for why, inputs in boundaries()]
    smoke = _smoke([made[name] for name in sorted({name for found in families.values() for name in found.values()})])
    vectors = tuple(replace(made[name], smoke=name in smoke) for name in sorted(made))
    return Generated(vectors, _manifest(vectors, families, sorted(set(edges))))


def _manifest(vectors: Sequence[Vector], families: Mapping[str, Any], edges: Sequence[str]) -> dict[str, Any]:
    runnable = {str(world): [v.id for v in vectors if _runnable(v, world)] for world in WORLDS}
    return {
        "format": FORMAT,
        "spec": {"sha256": spec_hash(), "files": list(SPEC)},
        "counts": {
            "vectors": len(vectors),
            "smoke": sum(vector.smoke for vector in vectors),
            "classes": sum(len(found) for found in families.values()),
            "boundaries": len(edges),
            **{f"runnable in a world of {world}": len(names) for world, names in runnable.items()},
            "rows": {str(row.number): sum(v.row == row.number for v in vectors) for row in ROWS},
        },
        "families": {
            family.name: {
                "says": family.description,
                "decides": list(family.decides),
                "atoms": list(family.atoms),
                "classes": families[family.name],
            }
            for family in FAMILIES
        },
        "boundaries": list(edges),
        "runnable": runnable,
    }


def _runnable(vector: Vector, world: int) -> bool:
    """Return whether a world of this many real ranks can form groups of every size in the vector."""
    sizes = vector.input["groups"].values()
    return bool(vector.input["world_size"] == world and all(world % size == 0 for size in sizes))


def _smoke(vectors: Sequence[Vector]) -> frozenset[str]:
    """Return the ids of the simplest vector of every row with the table's outcome, and of every code alone."""

    def simplest(fits: Callable[[Vector], bool]) -> Vector:
        return min(filter(fits, vectors), key=_complexity)

    def as_the_table(number: int, codes: Sequence[str], outcome: Outcome) -> Callable[[Vector], bool]:
        return lambda v: v.row == number and v.expected["violations"] == codes and v.expected["outcome"] == outcome

    chosen = [simplest(as_the_table(row.number, [row.code.value] if row.code else [], row.outcome)) for row in ROWS]
    for code in ViolationCode:
        if not any(vector.expected["violations"] == [code.value] for vector in chosen):
            chosen.append(simplest(lambda v, code=code: v.expected["violations"] == [code.value]))  # type: ignore[misc] # a default binds the loop's variable
    return frozenset(vector.id for vector in chosen)


def _complexity(vector: Vector) -> tuple[bool, bool, int, str]:
    """Return the sort key: runnable by real ranks first, successes in a world of 4 first, few given fields first."""
    given = sum(value is not None for value in _leaves(vector.input))
    world = 2 if vector.expected["violations"] else 4
    at_all = any(_runnable(vector, one) for one in WORLDS)
    return not at_all, not _runnable(vector, world), given, vector.id


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _leaves(part)
    else:
        yield value


# --- files ---------------------------------------------------------------------------------------------


def spec_hash() -> str:
    """Return the SHA-256 (hex) of the spec's sources."""
    return hash_of({name: files("tpinit.spec").joinpath(name).read_bytes().decode() for name in SPEC})


def hash_of(sources: Mapping[str, str]) -> str:
    """Return the SHA-256 (hex) of sources and their names; line ends and trailing spaces do not count."""
    digest = hashlib.sha256()
    for name, source in sources.items():
        digest.update("\n".join([name, *(line.rstrip() for line in source.splitlines()), ""]).encode())
    return digest.hexdigest()


def write(generated: Generated, folder: Path) -> None:
    """Write the three files. Raises OSError where the folder can't be written to."""
    for name, text in generated.texts().items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def committed() -> dict[str, str]:
    """Return the text of each committed file that exists."""
    folder = files("tpinit.spec.vectors")
    return {
        name: folder.joinpath(name).read_text(encoding="utf-8") for name in FILES if folder.joinpath(name).is_file()
    }


def check(generated: Generated, texts: Mapping[str, str]) -> list[str]:
    """Return the differences between the generated and the committed files; an empty list is a pass."""
    now = generated.texts()
    if dict(texts) == now:
        return []
    differing = list(_differing_vectors(now["vectors.jsonl"], texts.get("vectors.jsonl", "")))
    differing += _differing_manifest(now["manifest.json"], texts.get("manifest.json", ""))
    if now["vector.schema.json"] != texts.get("vector.schema.json"):
        differing.append("vector.schema.json: differs from the schema that the vocabulary gives")
    return differing or ["the files differ in their layout only"]


def _differing_vectors(now: str, committed: str) -> Iterator[str]:
    new, old = _by_id(now), _by_id(committed)
    for name in sorted(new.keys() | old.keys()):
        if name not in old:
            yield f"{name}: is not committed"
        elif name not in new:
            yield f"{name}: is committed, and no longer generated"
        elif new[name] != old[name]:
            keys = [key for key in new[name] if new[name][key] != old[name].get(key)]
            yield f"{name}: differs in {', '.join(keys) or 'its keys'}"


def _by_id(text: str) -> dict[str, Mapping[str, Any]]:
    return dict(_id_and_vector(number, line) for number, line in enumerate(text.splitlines(), start=1))


def _id_and_vector(number: int, line: str) -> tuple[str, Mapping[str, Any]]:
    try:
        vector = json.loads(line)
        return vector["id"], vector
    except (ValueError, KeyError, TypeError):
        return f"line {number} of vectors.jsonl, which is not a vector", {}


def _differing_manifest(now: str, committed: str) -> Iterator[str]:
    try:
        old = json.loads(committed)
    except ValueError:
        yield "manifest.json: is missing, or not JSON"
        return
    for key, value in json.loads(now).items():
        if not isinstance(old, dict) or old.get(key) != value:
            reason = "the spec has changed since these vectors were written" if key == "spec" else "differs"
            yield f"manifest.json: {key}: {reason}"
