"""The report of a run: one status per vector, a footer with counts, and the JSON file that holds both.

`read` refuses a file without a footer, or with a footer whose counts differ from its cases: a run that was cut short
must not look like a run without failures.
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
    """The status of one vector in a report; JSON calls it the verdict."""

    AGREED = "agreed"
    PERMITTED = "permitted"  # departs by a choice that the implementation declared
    KNOWN = "known"  # wrong in exactly the way that the file of known failures records
    SKIPPED = "skipped"
    DISAGREED = "disagreed"
    UNEXPECTED_PASS = "unexpected_pass"  # a known failure that agrees now
    CHANGED = "changed"  # a known failure that is wrong in another way now
    UNSTABLE = "unstable"  # the answer depends on the cases asked before
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
    """A file is not a complete report. The text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field whose answer is not the expected one."""

    field: str
    expected: Any
    given: Any


@dataclass(frozen=True, slots=True)
class CaseReport:
    """One vector of a report: its input, the expected answer, the given answer and the status.

    `answer` is the value of `protocol.answer_to_json`, or None if the case was not run. `choice` names the permissive
    choice of a permitted answer, `link` is the address recorded with a known failure. `seconds` is the time of `run`.
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
        """Whether the implementation gave a result, right or wrong."""
        return self.answer is not None and "result" in self.answer


@dataclass(frozen=True, slots=True)
class Report:
    """One run of one implementation. `spelled` is the value of --impl, `selection` describes the vectors asked."""

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
    """Return the fields of an answer in one flat dict: `tp_size` becomes `tp_size.value` and `tp_size.source`."""
    flat: dict[str, Any] = {}
    for key, value in answer.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            flat[key] = value
    return flat


def footer(report: Report) -> dict[str, Any]:
    """Return the counts of a report: cases, answered cases, cases of each status, and answers to each field."""
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
    """Return 4 if the implementation is broken, else 1 if an answer is wrong, else 0."""
    verdicts = {case.verdict for case in report.cases}
    known = any(case.verdict is CaseStatus.KNOWN for case in report.cases)
    if report.broken or verdicts & BROKEN or not (known or any(case.answered for case in report.cases)):
        return 4
    return 1 if verdicts & WRONG else 0


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as plain data, with the footer as its last key."""
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
    """Write the JSON file atomically."""
    write_text(json.dumps(to_json(report), indent=1) + "\n", path)


def write_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write a file atomically. Raises OSError if the file can't be written."""
    target = Path(path)
    if target.exists() and not target.is_file():  # a pipe or /dev/stdout can't be replaced
        target.write_text(text, encoding="utf-8")
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> Report:
    """Read a JSON report. Raises ReportError for an incomplete or malformed one, and OSError if there is no file."""
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
        raise ReportError(f"{path}: the report has no footer, so the run may have been cut short")
    try:
        report = _report(body)
        counted = footer(report)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(f"{path}: malformed ({type(error).__name__}: {error})") from error
    if counted != body["footer"]:
        wrong = [
            key for key in counted if not isinstance(body["footer"], dict) or body["footer"].get(key) != counted[key]
        ]
        raise ReportError(
            f"{path}: the counts in the footer differ from the cases: {', '.join(wrong) or 'unknown keys'}"
        )
    return report


def _report(body: dict[str, Any]) -> Report:
    def case_report(fields: dict[str, Any]) -> CaseReport:
        case = CaseReport(**fields)
        return replace(
            case,
            verdict=CaseStatus(case.verdict),
            clauses=tuple(case.clauses),
            differences=tuple(Difference(**difference) for difference in fields["differences"]),
        )

    rest = ("spelled", "dialect", "selection", "broken", "seconds")
    return Report(
        **body["implementation"],
        **{key: body[key] for key in rest},
        choices=tuple(body["choices"]),
        cases=tuple(case_report(fields) for fields in body["cases"]),
    )
