"""Reports of several implementations side by side, as one self-contained HTML page.

The page counts answered and agreed cases separately: an implementation that answers few fields can agree in few.
It is complete without scripts; with scripts the table of vectors can be filtered by row, verdict and text. All output
of an implementation is escaped, and a content security policy allows only the page's own style and script.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from typing import Any

from tpinit.conformance.dialects import CHOICES
from tpinit.conformance.report import BROKEN, WRONG, CaseReport, CaseStatus, Report, exit_code, footer
from tpinit.conformance.terminal import counts, excused, reproduction

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --wrong: #cf222e; --broken: #9a6700; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
thead th { background: var(--soft); }
.good { color: var(--good); } .wrong { color: var(--wrong); } .broken, .known { color: var(--broken); }
code, pre { font: 13px/1.4 ui-monospace, monospace; } pre { overflow-x: auto; margin: .3rem 0; white-space: pre-wrap; }
.wide { overflow-x: auto; }
@media (prefers-color-scheme: dark) { :root { --good: #3fb950; --wrong: #ff7b72; --broken: #d29922; } }
summary { cursor: pointer; } form { display: flex; gap: 1rem; flex-wrap: wrap; } [hidden] { display: none; }
"""

_SCRIPT = """
const form = document.getElementById("narrow");
const rows = [...document.querySelectorAll("#vectors > tbody > tr")];
const shown = document.getElementById("shown");
function narrow() {
  const row = form.elements.row.value, kind = form.elements.kind.value, text = form.elements.text.value.toLowerCase();
  let count = 0;
  for (const one of rows) {
    const fits = (!row || one.dataset.row === row) && (!kind || one.dataset.verdicts.split(" ").includes(kind))
      && (!text || one.textContent.toLowerCase().includes(text));
    one.hidden = !fits;
    count += fits;
  }
  shown.textContent = count + " of " + rows.length + " vectors";
}
form.hidden = false;
form.addEventListener("input", narrow);
form.addEventListener("submit", event => event.preventDefault());
narrow();
"""

_WORDS = {0: ("good", "conforms"), 1: ("wrong", "does not conform"), 4: ("broken", "is broken")}


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def page(reports: Sequence[Report], title: str = "tpinit conform") -> str:
    """Return the page for one or more reports. Vectors are matched by id; a dash marks one that was not asked."""
    policy = f"default-src 'none'; style-src 'sha256-{_digest(_STYLE)}'; script-src 'sha256-{_digest(_SCRIPT)}'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{_who(reports)}
<h2>The twelve rows</h2>
{_rows(reports)}
<h2>Fields</h2>
{_fields(reports)}
<h2>Vectors</h2>
{_vectors(reports)}
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _text(value: object) -> str:
    # Characters that HTML forbids would make the page invalid.
    return escape("".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in str(value)))


def _table(head: Sequence[str], body: Sequence[str], name: str) -> str:
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    rows = "\n".join(body)
    table = f'<table id="{name}"><thead><tr>{cells}</tr></thead><tbody>\n{rows}\n</tbody></table>'
    return f'<div class="wide">{table}</div>'


def _name(report: Report) -> str:
    return _text(f"{report.name} {report.version}")


def _who(reports: Sequence[Report]) -> str:
    body = []
    for report in reports:
        kind, words = ("known", "departs as known") if excused(report) else _WORDS[exit_code(report)]
        used = footer(report)["choices"]
        choices = "".join(
            f"<div><code>{_text(name)}</code>: {_text(CHOICES[name].summary if name in CHOICES else '')}"
            f" ({used[name]} answers)</div>"
            for name in report.choices
        )
        broken = f"<pre>{_text(report.broken)}</pre>" if report.broken else ""
        total = counts(report.cases)
        body.append(
            f'<tr><th scope="row">{_name(report)}</th><td>{_text(report.language)}</td><td>{_text(report.dialect)}</td>'
            f'<td>{choices or "none"}</td><td class="{kind}">{words}{broken}</td>'
            f'<td class="number">{_cell(total)}</td><td class="number">{report.seconds:.1f} s</td></tr>'
        )
    head = ("implementation", "language", "dialect", "declared choices", "result", "all vectors", "time")
    return _table(head, body, "implementations")


def _cell(count: dict[str, int]) -> str:
    """Return the lines of a cell: answered, agreed, and every other count that is not zero."""
    if not count["cases"]:
        return "&ndash;"
    cases = count["cases"]
    lines = [f"answered {count['answered']}/{cases}", f"agreed {count['agreed']}/{cases}"]
    lines += [f"{name} {count[name]}" for name in ("permitted", "known", "skipped") if count[name]]
    lines += [f'<span class="{name}">{name} {count[name]}</span>' for name in ("wrong", "broken") if count[name]]
    return "<br>".join(lines)


def _rows(reports: Sequence[Report]) -> str:
    body = []
    for row in range(1, 13):
        cells = [counts(case for case in report.cases if case.row == row) for report in reports]
        cells_text = "".join(f'<td class="number">{_cell(count)}</td>' for count in cells)
        body.append(f'<tr><th scope="row">{row}</th>{cells_text}</tr>')
    return _table(("row", *map(_name, reports)), body, "rows")


def _fields(reports: Sequence[Report]) -> str:
    counted = [footer(report)["fields"] for report in reports]
    names = list(dict.fromkeys(name for fields in counted for name in fields))
    body = []
    for name in names:
        cells = []
        for fields in counted:
            count = fields.get(name, {"asked": 0, "answered": 0, "agreed": 0})
            numbers = f"answered {count['answered']}/{count['asked']}<br>agreed {count['agreed']}/{count['asked']}"
            cells.append(f'<td class="number">{numbers if count["asked"] else "&ndash;"}</td>')
        body.append(f'<tr><th scope="row"><code>{_text(name)}</code></th>{"".join(cells)}</tr>')
    return _table(("field", *map(_name, reports)), body, "fields")


def _vectors(reports: Sequence[Report]) -> str:
    by_id = [{case.id: case for case in report.cases} for report in reports]
    first: dict[str, CaseReport] = {}
    for cases in by_id:
        for name, case in cases.items():
            first.setdefault(name, case)
    body = []
    for name, case in sorted(first.items(), key=lambda item: (item[1].row, item[0])):
        asked = [cases.get(name) for cases in by_id]
        verdicts = " ".join(sorted({each.verdict.value for each in asked if each is not None}))
        data = f"<pre>{_text(json.dumps(dict(case.input)))}</pre><pre>{_text(json.dumps(dict(case.expected)))}</pre>"
        cells = "".join(_vector(report, each) for report, each in zip(reports, asked, strict=True))
        body.append(
            f'<tr data-row="{case.row}" data-verdicts="{verdicts}"><td class="number">{case.row}</td>'
            f"<td><details><summary><code>{_text(name)}</code></summary>{_text(case.effect)}{data}</details></td>{cells}</tr>"
        )
    return _form(first.values(), reports) + _table(("row", "vector", *map(_name, reports)), body, "vectors")


def _form(cases: Any, reports: Sequence[Report]) -> str:
    def options(values: Sequence[str]) -> str:
        return '<option value="">all</option>' + "".join(f"<option>{value}</option>" for value in values)

    rows = options([str(row) for row in sorted({case.row for case in cases})])
    present = {case.verdict for report in reports for case in report.cases}
    kinds = options([verdict.value for verdict in CaseStatus if verdict in present])
    return (
        f'<form id="narrow" hidden><label>row <select name="row">{rows}</select></label>'
        f'<label>verdict <select name="kind">{kinds}</select></label>'
        '<label>text <input name="text" type="search"></label><output id="shown"></output></form>'
    )


def _vector(report: Report, case: CaseReport | None) -> str:
    if case is None:
        return "<td>&ndash;</td>"
    kind = "wrong" if case.verdict in WRONG else "broken" if case.verdict in BROKEN else "good"
    word = _text(case.verdict.value.replace("_", " "))
    if case.verdict is CaseStatus.AGREED:
        return f'<td class="{kind}">{word}</td>'
    lines = [
        f"{difference.field}: expected {json.dumps(difference.expected)}, given {json.dumps(difference.given)}"
        for difference in case.differences
    ]
    if not case.answered and case.answer is not None:
        lines += [f"{key}: {value}" for key, value in case.answer.items()]
    lines += [f"permitted by {case.choice}"] if case.choice else []
    lines += [f"on record: {case.link}"] if case.link else []
    lines += [case.detail.strip()] if case.detail else []
    lines += [f"again: {reproduction(report, case)}"]
    details = _text("\n".join(lines))
    return f'<td><details><summary class="{kind}">{word}</summary><pre>{details}</pre></details></td>'
