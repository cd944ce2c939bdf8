"""The ledger as one self-contained HTML page, for any browser width, light and dark.

Every text of the ledger is escaped, and the page's content security policy forbids loading any resource.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import Any

__all__ = ["page"]

Ledger = Mapping[str, Any]


def page(ledger: Ledger) -> str:
    """Return the HTML page of a ledger, with or without times. Raises KeyError for data that is not a ledger."""
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    theorems, times = ledger["theorems"], ledger.get("times")
    parts = {
        "summary": _summary(ledger),
        "options": "".join(_option(clause, says, theorems) for clause, says in ledger["clauses"].items()),
        "count": str(len(theorems)),
        "time_head": '<th role="columnheader" scope="col">Seconds</th>' if times else "",
        "rows": "\n".join(_row(name, entry, times) for name, entry in theorems.items()),
        "sections": _witnesses(ledger["witnesses"]) + _necessity(ledger["necessity"]) + _rests_on(ledger["rests_on"]),
        "made_with": _made_with(ledger),
    }
    return re.sub(r"@(\w+)@", lambda hit: parts[hit[1]], template)


def _option(clause: str, says: str, theorems: Mapping[str, Any]) -> str:
    count = sum(entry["clause"] == clause for entry in theorems.values())
    return f'<option value="{escape(clause)}">{escape(clause)}: {escape(says)} ({count})</option>'


def _summary(ledger: Ledger) -> str:
    total, proven = ledger["summary"]["theorems"], ledger["summary"]["proven"]
    parts = len(ledger["necessity"])
    unneeded = sum(not need["theorem"] for need in ledger["necessity"].values())
    witnesses = ledger["witnesses"]
    result = f"All {total} theorems are proven, and every control is refuted."
    if proven != total:
        result = f"<strong>{total - proven} of {total} theorems are not proven.</strong>"
    left_out = f"Without any one of the {parts} parts of the contract, a theorem is false."
    if unneeded:
        left_out = f"<strong>Without {unneeded} of {parts} parts of the contract, every theorem still holds.</strong>"
    rows, codes = len(witnesses["rows"]), len(witnesses["codes"])
    return f"{result} {rows} rows and {codes} violations each have an example input. {left_out}"


def _row(name: str, entry: Mapping[str, Any], times: Mapping[str, Any] | None) -> str:
    words = escape(f"{name} {entry['clause']} {entry['statement']}".lower())
    verdict = escape(entry["verdict"])
    # Only a pass has the class `proved`; every other verdict gets the style of a failure.
    badge = f'<span class="badge{" proved" if verdict == "proved" else ""}">{verdict}</span>'
    oracles = "".join(f"<li>{_oracle(oracle, run, entry['claims'])}</li>" for oracle, run in entry["oracles"].items())
    time = ""
    if times:
        time = f'<td role="cell" class="number" data-label="Seconds">{times["theorems"][name]["total"]:.2f}</td>'
    return (
        f'<tr role="row" data-clause="{escape(entry["clause"])}" data-text="{words}">'
        f'<td role="cell" class="narrow" data-label="Clause">{escape(entry["clause"])}</td>'
        f'<td role="cell"><code class="name">{_name(name)}</code>'
        f'<p class="statement">{_prose(entry["statement"])}</p>'
        f"<details><summary>Evidence<span hidden> of {escape(name)}</span></summary>{_evidence(entry)}</details></td>"
        f'<td role="cell" class="narrow verdict">{badge}</td>'
        f'<td role="cell" data-label="Decided by"><ul class="plain">{oracles}</ul></td>{time}</tr>'
    )


def _name(name: str) -> str:
    """Return a name, escaped, that may wrap at its underscores."""
    return escape(name).replace("_", "_<wbr>")


def _prose(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _hash(digest: str) -> str:
    return f'<code class="hash">{escape(digest)}</code>'


def _oracle(name: str, run: Mapping[str, Any], claims: int) -> str:
    failed = "" if run["verdict"] == "proved" else f" <strong>{escape(run['verdict'])}</strong>"
    unit = run["unit"].removesuffix("s") if run["checked"] == 1 else run["unit"]
    some = f", {run['claims']} of {claims} claims" if run["claims"] < claims else ""
    return f'{escape(name)}{failed} <span class="quiet">{run["checked"]:,} {escape(unit)}{some}</span>'


def _evidence(entry: Mapping[str, Any]) -> str:
    control = entry["control"]
    refuted = [f"{verdict} by {oracle}" for oracle, verdict in control["verdicts"].items()]
    rows = [
        ("Reason", escape(entry["detail"])),
        ("Bound", escape(entry["bound"])),
        ("Not decided by", _listed(_of(f"{oracle}: {why}", labels) for oracle, why, labels in _left_out(entry))),
        ("Needs", _cores(entry["cores"])),
        (
            "Input that satisfies the premises",
            _listed(_of(case["input"], case["claims"]) for case in entry["premises"]),
        ),
        ("Witness", _listed(_of(found, [claim]) for claim, found in entry["reached"].items())),
        ("Control", escape(f"{control['says']}: {', '.join(refuted)}")),
        ("False claim of the control", escape(control["falls"])),
        ("Formula, SHA-256", _hash(entry["formula"]) if entry["formula"] else ""),
        (
            "Source, SHA-256",
            _listed(f"{escape(module)} {_hash(digest)}" for module, digest in entry["sources"].items()),
        ),
    ]
    return "<dl>" + "".join(f"<dt>{title}</dt><dd>{text}</dd>" for title, text in rows if text) + "</dl>"


def _left_out(entry: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each oracle that leaves claims out, with each reason and the labels of its claims."""
    for oracle, reasons in entry["not_decided_by"].items():
        for why in dict.fromkeys(reasons.values()):
            yield oracle, why, [label for label, reason in reasons.items() if reason == why]


def _cores(cores: Iterable[Mapping[str, Any]]) -> str:
    return _listed(_of("; ".join(core["needs"]) or "the definitions alone", core["claims"]) for core in cores)


def _of(text: str, claims: list[str]) -> str:
    labels = ", ".join(claims) if len(claims) <= 6 else f"{len(claims)} claims, {claims[0]} to {claims[-1]}"
    return f'{escape(text)} <span class="of">({escape(labels)})</span>'


def _listed(items: Iterable[str]) -> str:
    lines = list(items)
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>" if lines else ""


def _table(title: str, key: str, heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a section with a table. On a narrow screen each cell shows the head of its column as a label."""
    columns = "".join(f'<th role="columnheader" scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(
        '<tr role="row">'
        + "".join(
            f'<td role="cell" data-label="{escape(head)}">{cell}</td>' for head, cell in zip(heads, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<h2 id="{key}">{escape(title)}</h2>\n<table role="table" aria-labelledby="{key}">'
        f'<thead role="rowgroup"><tr role="row">{columns}</tr></thead><tbody role="rowgroup">{body}</tbody></table>\n'
    )


def _witnesses(witnesses: Mapping[str, Mapping[str, str]]) -> str:
    rows = [(f"row {escape(number)}", escape(text)) for number, text in witnesses["rows"].items()]
    codes = [(f"<code>{_name(code)}</code>", escape(text)) for code, text in witnesses["codes"].items()]
    return _table("An input for every row", "rows", ("Row", "Input"), rows) + _table(
        "An input for every violation, for which no other holds", "codes", ("Violation", "Input"), codes
    )


def _necessity(necessity: Mapping[str, Mapping[str, str]]) -> str:
    rows = [
        (
            escape(dropped),
            f"<code>{_name(need['theorem'])}</code>" if need["theorem"] else "<strong>no theorem is false</strong>",
            escape(need["falls"]),
        )
        for dropped, need in necessity.items()
    ]
    title = "The theorem that needs each part of the contract"
    return _table(title, "necessity", ("Dropped part", "First false theorem", "False claim"), rows)


def _rests_on(modules: Mapping[str, str]) -> str:
    rows = [(f"<code>{_name(module)}</code>", _hash(digest)) for module, digest in modules.items()]
    return _table("The source that every verdict rests on", "rests-on", ("Module", "SHA-256"), rows)


def _made_with(ledger: Ledger) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in ledger["versions"].items())
    took = f" The run took {ledger['times']['total']:.0f} seconds." if ledger.get("times") else ""
    return (
        f"<p>Decided with {escape(versions)}.{took}</p>"
        f"<p>Brute force covers every input with {escape(ledger['bounds']['brute'])}; the solvers have no such "
        "bounds. A theorem with a bound of its own states it.</p>"
    )
