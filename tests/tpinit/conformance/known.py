"""Known failures: wrong answers that are recorded exactly, so that a test suite accepts these and no others.

The suite passes as long as each recorded fault stays as it is, and fails when one changes or disappears. The file::

    {"format": "tpinit-known-failures", "version": 1, "failures": [
      {"implementation": "acme", "versions": ">=1.2,<2", "vector": "r07-size-mismatch-01",
       "answer": {"result": {...}}, "link": "https://..."}]}

`answer` is the `answer` of the case in the JSON report: the whole result, or the kind of a fault with its message.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tpinit.conformance.report import CaseReport, CaseStatus, Report

__all__ = ["KnownFailure", "KnownFailuresError", "apply", "in_range", "judged", "read", "record"]

FORMAT = "tpinit-known-failures"
VERSION = 1
_KEYS = {"implementation", "versions", "vector", "answer", "link"}
_ANSWERS = {"result", "errored", "crashed", "timed_out", "garbage"}
_CLAUSE = re.compile(r"(==|!=|<=|>=|<|>)\s*([0-9]+(?:\.[0-9]+)*)\Z")


class KnownFailuresError(ValueError):
    """A file of known failures is malformed. The text lists every problem."""


@dataclass(frozen=True, slots=True)
class KnownFailure:
    """One recorded wrong answer; `versions` is a range such as `>=1.2,<2`, or `*`."""

    implementation: str
    versions: str
    vector: str
    answer: Mapping[str, Any]
    link: str


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version without a suffix (`0.19.8+cpu`) and without trailing zeros."""
    match = re.match(r"v?([0-9]+(?:\.[0-9]+)*)", version)
    numbers = [int(part) for part in match[1].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def in_range(version: str, versions: str) -> bool:
    """Return whether a version is in a range. Raises KnownFailuresError for a malformed range."""
    if versions.strip() == "*":
        return True
    mine, holds = _release(version), True
    for part in versions.split(","):
        match = _CLAUSE.match(part.strip())
        if match is None:
            raise KnownFailuresError(f"{part.strip()!r} is not a version clause such as '>=1.2' (or '*' for all)")
        operator, other = match[1], _release(match[2])
        holds = (
            holds
            and {
                "==": mine == other,
                "!=": mine != other,
                "<=": mine <= other,
                ">=": mine >= other,
                "<": mine < other,
                ">": mine > other,
            }[operator]
        )
    return holds


def read(path: str | os.PathLike[str], vectors: Collection[str] | None = None) -> tuple[KnownFailure, ...]:
    """Read a file of known failures; `vectors` are the ids of all vectors, to find entries with an unknown id.

    Raises KnownFailuresError, with every problem, and OSError if there is no such file.
    """
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise KnownFailuresError(f"{path}: not JSON: {error}") from error
    if not isinstance(body, dict) or (body.get("format"), body.get("version")) != (FORMAT, VERSION):
        raise KnownFailuresError(f"{path}: not a {FORMAT} file of version {VERSION}")
    entries = body.get("failures")
    if set(body) != {"format", "version", "failures"} or not isinstance(entries, list):
        raise KnownFailuresError(f"{path}: its keys must be format, version and failures; failures is a list")
    problems: list[str] = []
    for number, entry in enumerate(entries):
        problems += [f"failures[{number}]: {problem}" for problem in _problems(entry, vectors)]
    if not problems:
        places = [(entry["implementation"], entry["versions"], entry["vector"]) for entry in entries]
        twice = {place for place in places if places.count(place) > 1}
        problems += [f"{vector} of {name} {versions} is listed twice" for name, versions, vector in sorted(twice)]
    if problems:
        raise KnownFailuresError(f"{path}: " + "; ".join(problems))
    return tuple(KnownFailure(**entry) for entry in entries)


def _problems(entry: object, vectors: Collection[str] | None) -> list[str]:
    if not isinstance(entry, dict) or set(entry) != _KEYS:
        return [f"its keys must be {', '.join(sorted(_KEYS))}"]
    texts = [key for key in ("implementation", "versions", "vector", "link") if not isinstance(entry[key], str)]
    if texts:
        return [f"{key} is not a string" for key in texts]
    problems = []
    try:
        in_range("1", entry["versions"])
    except KnownFailuresError as error:
        problems.append(f"versions: {error}")
    if not re.match(r"https?://\S+\Z", entry["link"]):
        problems.append(f"link: {entry['link']!r} is not a link")
    if not isinstance(entry["answer"], dict) or len(_ANSWERS & set(entry["answer"])) != 1:
        problems.append(f"answer: it must be an object with exactly one of {', '.join(sorted(_ANSWERS))}")
    if vectors is not None and entry["vector"] not in vectors:
        problems.append(f"vector: there is no vector {entry['vector']!r}")
    return problems


def apply(report: Report, failures: Collection[KnownFailure]) -> Report:
    """Return the report with known failures applied to its cases; entries for other versions are ignored."""
    cases = (judged(case, report.name, report.version, failures) for case in report.cases)
    return replace(report, cases=tuple(cases))


def judged(case: CaseReport, name: str, version: str, failures: Collection[KnownFailure]) -> CaseReport:
    """Return one case with the known failure of this implementation and version applied, if there is one."""
    for failure in failures:
        if (failure.implementation, failure.vector) == (name, case.id) and in_range(version, failure.versions):
            return _judged(case, failure)
    return case


def _judged(case: CaseReport, failure: KnownFailure) -> CaseReport:
    if case.verdict in (CaseStatus.SKIPPED, CaseStatus.NOT_RUN, CaseStatus.UNSTABLE):
        return case
    if case.verdict in (CaseStatus.AGREED, CaseStatus.PERMITTED):
        return replace(case, verdict=CaseStatus.UNEXPECTED_PASS, link=failure.link)
    same = json.dumps(case.answer, sort_keys=True) == json.dumps(failure.answer, sort_keys=True)
    return replace(case, verdict=CaseStatus.KNOWN if same else CaseStatus.CHANGED, link=failure.link)


def record(report: Report, versions: str, link: str) -> dict[str, Any]:
    """Return the content of a file that records every wrong answer of a report; `link` is the default address."""
    wrong = (
        CaseStatus.DISAGREED,
        CaseStatus.ERRORED,
        CaseStatus.CRASHED,
        CaseStatus.TIMED_OUT,
        CaseStatus.GARBAGE,
        CaseStatus.CHANGED,
    )
    return {
        "format": FORMAT,
        "version": VERSION,
        "failures": [
            {
                "implementation": report.name,
                "versions": versions,
                "vector": case.id,
                "answer": case.answer,
                "link": case.link or link,
            }
            for case in report.cases
            if case.verdict in wrong or case.verdict is CaseStatus.KNOWN
        ],
    }
