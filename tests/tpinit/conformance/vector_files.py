"""Vector files of users: findings of a search, or a project's regression cases, one vector per line."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tpinit.conformance.messages import check_case, check_result
from tpinit.conformance.report import write_text
from tpinit.conformance.vectors import Vector, answer_of, to_inputs
from tpinit.reference.resolver import resolve

__all__ = ["VectorFileError", "vector_from_case", "read", "write"]

_KEYS = ("id", "row", "clauses", "why", "smoke", "input", "expected")


class VectorFileError(ValueError):
    """A vector file is malformed. The text names the line of the first problem."""


def vector_from_case(case: dict[str, Any], flag: str, effect: str) -> Vector:
    """Make a vector from an input; it expects the contract's answer.

    The id depends on the input only, so that equal cases always get equal ids.
    """
    expected = answer_of(resolve(to_inputs(case)), case["groups"])
    slug = (expected["violations"] or [expected["outcome"]])[0].lower().replace("_", "-")
    digest = hashlib.sha256(json.dumps(case, sort_keys=True).encode()).hexdigest()[:8]
    name = f"r{expected['row']:02d}-{slug}-{digest}"
    return Vector(name, expected["row"], (), {"flag": flag, "effect": effect}, False, case, expected)


def write(vectors: Iterable[Vector], path: str | os.PathLike[str]) -> None:
    """Write a vector file for `read` and `tpinit conform --vectors`."""
    write_text("".join(json.dumps(vector.to_json()) + "\n" for vector in vectors), path)


def read(path: str | os.PathLike[str]) -> tuple[Vector, ...]:
    """Read a vector file. Raises VectorFileError for a malformed file and OSError for a missing one."""
    vectors = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            vectors.append(_vector(line, f"{path}:{number}"))
    ids = [vector.id for vector in vectors]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice or not vectors:
        raise VectorFileError(f"{path}: {'ids that occur twice: ' + ', '.join(twice) if twice else 'no vectors'}")
    return tuple(vectors)


def _vector(line: str, place: str) -> Vector:
    try:
        body = json.loads(line)
    except ValueError as error:
        raise VectorFileError(f"{place}: not JSON: {error}") from error
    if not isinstance(body, dict) or set(body) != set(_KEYS):
        raise VectorFileError(f"{place}: a vector must have the keys {', '.join(_KEYS)}")
    if not isinstance(body["id"], str) or not re.match(r"[a-z0-9-]+\Z", body["id"]):
        raise VectorFileError(f"{place}: {body['id']!r} is not an id ([a-z0-9-]+)")
    if not isinstance(body["clauses"], list) or not isinstance(body["why"], dict):
        raise VectorFileError(f"{place}: clauses must be a list, and why an object")
    problems = check_case(body["input"]) or check_result(body["expected"], body["input"])
    problems += [] if body["row"] == body["expected"].get("row") else ["row and expected.row differ"]
    if problems:
        raise VectorFileError(f"{place}: {'; '.join(problems)}")
    return Vector(**{**body, "clauses": tuple(body["clauses"])})
