"""A report for the terminal: counts by row, fields that were left out, and each divergence with its command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from typing import Any

from tpinit.conformance.dialects import CHOICES
from tpinit.conformance.report import BROKEN, WRONG, CaseReport, CaseStatus, Report, exit_code, footer

__all__ = ["excused", "partly_answered", "reproduction", "summary", "text"]

_COLUMNS = ("row", "cases", "answered", "agreed", "permitted", "known", "skipped", "wrong", "broken")
_CONCLUSIONS = {
    0: "conforms",
    1: "does not conform",
    4: "is broken: its answers can't be relied on",
}


def reproduction(report: Report, case: CaseReport) -> str:
    """Return the command that asks this case again."""
    return f"tpinit conform --impl {shlex.quote(report.spelled)} --only {case.id}"


def counts(cases: Iterable[CaseReport]) -> dict[str, int]:
    """Return the counts in the columns of the table."""
    cases = tuple(cases)

    def of(*verdicts: CaseStatus) -> int:
        return sum(case.verdict in verdicts for case in cases)

    return {
        "cases": len(cases),
        "answered": sum(case.answered for case in cases),
        "agreed": of(CaseStatus.AGREED),
        "permitted": of(CaseStatus.PERMITTED),
        "known": of(CaseStatus.KNOWN),
        "skipped": of(CaseStatus.SKIPPED),
        "wrong": of(*WRONG),
        "broken": of(*BROKEN),
    }


def partly_answered(report: Report) -> list[str]:
    """Return, for each field that some answers leave out, a text with the number of answers that have it."""
    answered = sum(case.answered for case in report.cases)
    fields = footer(report)["fields"]
    return [
        f"{name} in {field['answered']} of {answered} answers"
        for name, field in fields.items()
        if answered and field["answered"] < answered
    ]


def excused(report: Report) -> bool:
    """Return whether the exit code is 0 only because of known failures, which is not conformance."""
    return exit_code(report) == 0 and any(case.verdict is CaseStatus.KNOWN for case in report.cases)


def summary(report: Report) -> str:
    """Return one line: the implementation, the outcome of the run, the vectors asked, and the counts."""
    count = counts(report.cases)
    numbers = ", ".join(f"{number} {name}" for name, number in count.items() if number and name != "cases")
    asked = f"{count['cases']} vectors ({report.selection}) in {report.seconds:.1f} s"
    conclusion = "departs as known, and nowhere else" if excused(report) else _CONCLUSIONS[exit_code(report)]
    return f"{report.name} {report.version} {conclusion}: {asked}: {numbers or 'none answered'}"


def text(report: Report, limit: int = 20) -> str:
    """Return the report as text, with the first `limit` divergences."""
    lines = [f"{report.name} {report.version} ({report.language}), dialect {report.dialect}", ""]
    lines += _table(report)
    lines += [""]
    lines += [f"choice {name}: {CHOICES[name].summary}; {used} answers permitted by it" for name, used in _used(report)]
    partly = partly_answered(report)
    if partly:
        lines += ["not all fields were answered: " + "; ".join(partly)]
    if report.broken:
        lines += [f"broken: {report.broken}"]
    bad = [case for case in report.cases if case.verdict in WRONG | BROKEN and case.verdict is not CaseStatus.NOT_RUN]
    for case in bad[:limit]:
        lines += ["", *_divergence(report, case)]
    if len(bad) > limit:
        lines += ["", f"... and {len(bad) - limit} more; --json, --junit and --html have them all"]
    return "\n".join([*lines, *([""] if bad else []), summary(report)])


def _used(report: Report) -> list[tuple[str, int]]:
    return list(footer(report)["choices"].items())


def _table(report: Report) -> list[str]:
    rows = sorted({case.row for case in report.cases})
    body = [(str(row), counts(case for case in report.cases if case.row == row)) for row in rows]
    body.append(("all", counts(report.cases)))
    lines = ["  ".join(f"{name:>{max(4, len(name))}}" for name in _COLUMNS)]
    for label, count in body:
        cells = [label, *(str(count[name] or "-") for name in _COLUMNS[1:])]
        lines.append("  ".join(f"{cell:>{max(4, len(name))}}" for name, cell in zip(_COLUMNS, cells, strict=True)))
    return lines


def _divergence(report: Report, case: CaseReport) -> list[str]:
    lines = [f"{case.verdict.value.replace('_', ' ')}: {case.id} (row {case.row}; {', '.join(case.clauses)})"]
    lines += [
        f"  {difference.field}: expected {_json(difference.expected)}, given {_json(difference.given)}"
        for difference in case.differences
    ]
    if case.answer is not None and not case.answered:
        lines += [f"  {kind.replace('_', ' ')}: {message}" for kind, message in case.answer.items()]
    if case.detail:
        lines += [f"  | {line}" for line in case.detail.strip().splitlines()[-6:]]
    if case.effect and case.verdict in WRONG:
        lines += [f"  effect: {case.effect}"]
    if case.link:
        lines += [f"  on record: {case.link}"]
    return [*lines, f"  again: {reproduction(report, case)}"]


def _json(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
