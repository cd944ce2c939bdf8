"""A report as JUnit XML for CI systems: one suite per row, one test per vector."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from xml.etree import ElementTree as Xml

from tpinit.conformance.report import BROKEN, WRONG, CaseReport, CaseStatus, Report
from tpinit.conformance.terminal import partly_answered, reproduction

__all__ = ["junit"]

# Characters that XML 1.0 forbids even when escaped.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _clean(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)


def junit(reports: Sequence[Report]) -> str:
    """Return one XML document with the suites of all reports."""
    root = Xml.Element("testsuites", name="tpinit conform")
    for report in reports:
        for row in sorted({case.row for case in report.cases}):
            _suite(root, report, f"row {row}", [case for case in report.cases if case.row == row])
    cases = [case for report in reports for case in report.cases]
    root.attrib.update(_counts(cases))
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _counts(cases: Sequence[CaseReport]) -> dict[str, str]:
    return {
        "tests": str(len(cases)),
        "failures": str(sum(case.verdict in WRONG for case in cases)),
        "errors": str(sum(case.verdict in BROKEN for case in cases)),
        "skipped": str(sum(case.verdict in (CaseStatus.SKIPPED, CaseStatus.KNOWN) for case in cases)),
        "time": f"{sum(case.seconds for case in cases):.6f}",
    }


def _suite(root: Xml.Element, report: Report, name: str, cases: Sequence[CaseReport]) -> None:
    who = _clean(f"{report.name} {report.version}")
    suite = Xml.SubElement(root, "testsuite", {"name": f"{who}: {name}", **_counts(cases)})
    properties = Xml.SubElement(suite, "properties")
    about = {"dialect": report.dialect, "choices": " ".join(report.choices), "language": report.language}
    for key, value in {**about, "not answered": "; ".join(partly_answered(report))}.items():
        Xml.SubElement(properties, "property", name=key, value=_clean(value))
    for case in cases:
        test = Xml.SubElement(suite, "testcase", classname=f"{who}.row{case.row}", name=case.id)
        test.set("time", f"{case.seconds:.6f}")
        _outcome(test, report, case)


def _outcome(test: Xml.Element, report: Report, case: CaseReport) -> None:
    if case.verdict is CaseStatus.PERMITTED:
        Xml.SubElement(test, "system-out").text = f"permitted by the choice {case.choice}"
    elif case.verdict is CaseStatus.KNOWN:
        Xml.SubElement(test, "skipped", message=_clean(f"known failure: {case.link}"))
    elif case.verdict is CaseStatus.SKIPPED:
        Xml.SubElement(test, "skipped", message=_clean(str((case.answer or {}).get("skipped", ""))))
    elif case.verdict is not CaseStatus.AGREED:
        kind = "failure" if case.verdict in WRONG else "error"
        fields = ", ".join(difference.field for difference in case.differences)
        element = Xml.SubElement(test, kind, type=case.verdict.value, message=_clean(fields or case.verdict.value))
        element.text = _clean(
            "\n".join(
                (
                    f"input: {json.dumps(case.input)}",
                    f"expected: {json.dumps(case.expected)}",
                    f"given: {json.dumps(case.answer)}",
                    *([case.detail] if case.detail else []),
                    *([report.broken] if report.broken else []),
                    f"again: {reproduction(report, case)}",
                )
            )
        )
