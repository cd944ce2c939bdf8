"""What a run found: one verdict a vector, counts in a footer, and the JSON file that holds both.

A report is read back only with its footer, and only where the footer's counts are those of its cases: a run that was
cut short must not look like one that found nothing.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

__all__ = [
    "BROKEN",
    "WRONG",
    "CaseReport",
    "Difference",
    "Report",
    "ReportError",
    "CaseStatus",
    "exit_code",
    "fields_of",
    "footer",
    "read",
    "to_json",
    "write",
    "write_text",
]

FORMAT = "tpinit-conformance-report"
VERSION = 1


class CaseStatus(str, Enum):
    """What became of one vector."""

    AGREED = "agreed"
    PERMITTED = "permitted"  # departs by a choice that the implementation declared
    KNOWN = "known"  # wrong, in exactly the way that the file of known failures has
    SKIPPED = "skipped"
    DISAGREED = "disagreed"
    UNEXPECTED_PASS = "unexpected_pass"  # agrees, and is a known failure
    CHANGED = "changed"  # a known failure that fails in another way
    UNSTABLE = "unstable"  # the answer depends on the cases before
    ERRORED = "errored"
    CRASHED = "crashed"
    TIMED_OUT = "timed_out"
    GARBAGE = "garbage"
    NOT_RUN = "not_run"


WRONG = frozenset({CaseStatus.DISAGREED, CaseStatus.UNEXPECTED_PASS, CaseStatus.CHANGED})
BROKEN = frozenset(
    {
        CaseStatus.UNSTABLE,
        CaseStatus.ERRORED,
        CaseStatus.CRASHED,
        CaseStatus.TIMED_OUT,
        CaseStatus.GARBAGE,
        CaseStatus.NOT_RUN,
    }
)


class ReportError(ValueError):
    """A file is not a whole report. The text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field whose answer is not the expected one."""

    field: str
    expected: Any
    given: Any


@dataclass(frozen=True, slots=True)
class CaseReport:
    """What became of one vector, with the question, the expected answer and the one that was given.

    `answer` is as `protocol.answer_to_json` has it, or None where the case was not run. `choice` names the permissive
    choice of a permitted answer, `link` where a known failure is told of.
    """

    id: str
    row: int
    clauses: tuple[str, ...]
    effect: str
    input: Mapping[str, Any]
    expected: Mapping[str, Any]
    verdict: CaseStatus
    answer: Mapping[str, Any] | None = None
    differences: tuple[Difference, ...] = ()
    observed: Mapping[str, Any] | None = None
    detail: str = ""
    choice: str | None = None
    link: str | None = None
    seconds: float = 0.0

    @property
    def answered(self) -> bool:
        """Whether there was a result, right or wrong."""
        return self.answer is not None and "result" in self.answer


@dataclass(frozen=True, slots=True)
class Report:
    """One run of one implementation. `spelled` is how it was asked for, `selection` which vectors it was asked."""

    name: str
    version: str
    language: str
    spelled: str
    dialect: str
    choices: tuple[str, ...]
    selection: str
    cases: tuple[CaseReport, ...]
    broken: str | None = None
    seconds: float = 0.0


def fields_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an expected or given answer, one level: `tp_size` becomes `tp_size.value` and `.source`."""
    flat: dict[str, Any] = {}
    for key, value in answer.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            flat[key] = value
    return flat


def footer(report: Report) -> dict[str, Any]:
    """Return the counts of a report: cases, answered, each verdict, and each field apart."""
    verdicts = Counter(case.verdict for case in report.cases)
    fields: dict[str, dict[str, int]] = {}
    for case in report.cases:
        given = fields_of(case.answer["result"]) if case.answered and case.answer else {}
        wrong = {difference.field for difference in case.differences if difference.field in given}
        for name in fields_of(case.expected):
            counts = fields.setdefault(name, {"asked": 0, "answered": 0, "agreed": 0})
            counts["asked"] += 1
            counts["answered"] += name in given
            counts["agreed"] += name in given and name not in wrong
    used = Counter(case.choice for case in report.cases if case.choice)
    return {
        "cases": len(report.cases),
        "answered": sum(case.answered for case in report.cases),
        **{verdict.value: verdicts[verdict] for verdict in CaseStatus},
        "choices": {name: used[name] for name in report.choices},
        "fields": fields,
    }


def exit_code(report: Report) -> int:
    """Return 0 where all is well, 4 where the implementation is broken (it comes first), 1 where it disagrees."""
    verdicts = {case.verdict for case in report.cases}
    known = any(case.verdict is CaseStatus.KNOWN for case in report.cases)
    if report.broken or verdicts & BROKEN or not (known or any(case.answered for case in report.cases)):
        return 4
    return 1 if verdicts & WRONG else 0


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as plain data, the footer last."""
    body = asdict(report)
    return {
        "format": FORMAT,
        "version": VERSION,
        "implementation": {key: body.pop(key) for key in ("name", "version", "language")},
        **{key: value for key, value in body.items() if key != "cases"},
        "cases": [{**case, "verdict": str(case["verdict"].value)} for case in body["cases"]],
        "footer": footer(report),
    }


def write(report: Report, path: str | os.PathLike[str]) -> None:
    """Write the JSON file, all of it or nothing."""
    write_text(json.dumps(to_json(report), indent=1) + "\n", path)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write a file, all of it or nothing. Raises OSError where that can't be."""
    target = Path(path)
    if target.exists() and not target.is_file():  # a pipe or /dev/stdout
        target.write_text(text, encoding="utf-8")
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> Report:
    """Read a JSON report back. Raises ReportError for one that is not whole, and OSError where there is none."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        body = json.loads(text)
    except ValueError as error:
        raise ReportError(f"{path}: not JSON, or cut short: {error}") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ReportError(f"{path}: not a {FORMAT}")
    if body.get("version") != VERSION:
        raise ReportError(f"{path}: version {body.get('version')!r}; this kit reads version {VERSION}")
    if "footer" not in body:
        raise ReportError(f"{path}: it has no footer, so nothing says that the run came to its end")
    try:
        report = _report(body)
        counted = footer(report)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(f"{path}: malformed ({type(error).__name__}: {error})") from error
    if counted != body["footer"]:
        wrong = [
            key for key in counted if not isinstance(body["footer"], dict) or body["footer"].get(key) != counted[key]
        ]
        raise ReportError(f"{path}: its footer does not count its cases: {', '.join(wrong) or 'unknown keys'}")
    return report


def _report(body: dict[str, Any]) -> Report:
    def case(one: dict[str, Any]) -> CaseReport:
        made = CaseReport(**one)
        return replace(
            made,
            verdict=CaseStatus(made.verdict),
            clauses=tuple(made.clauses),
            differences=tuple(Difference(**difference) for difference in one["differences"]),
        )

    rest = ("spelled", "dialect", "selection", "broken", "seconds")
    return Report(
        **body["implementation"],
        **{key: body[key] for key in rest},
        choices=tuple(body["choices"]),
        cases=tuple(case(one) for one in body["cases"]),
    )
