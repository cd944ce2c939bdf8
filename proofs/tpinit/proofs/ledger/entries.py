"""The ledger as data: what `tpinit prove` found, in the shape in which it is written, compared and shown.

Times stand in an object of their own, so that a ledger without it is the same on every run.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from tpinit.proofs import brute
from tpinit.proofs.claims import Theorem, Verdict
from tpinit.proofs.ledger.necessity import Need
from tpinit.proofs.lint import CLAUSES
from tpinit.proofs.running import Record
from tpinit.spec.table import ROWS
from tpinit.spec.vocabulary import ViolationCode

__all__ = ["FORMAT", "ledger", "missing", "source_hash", "text"]

FORMAT = "tpinit-ledger/1"
ROWS_THEOREM, CODES_THEOREM = "every_row_is_reachable", "every_violation_is_reachable_alone"
_DISTRIBUTIONS = ("z3-solver", "cvc5", "crosshair-tool", "python-sat", "numpy")


def ledger(
    theorems: Mapping[str, Theorem], records: Sequence[Record], needs: Sequence[Need], seconds: float
) -> dict[str, object]:
    """Put together what is known of the theorems of the records, as plain data."""
    entries = {record.name: _entry(theorems[record.name], record) for record in records}
    proven = sum(record.verdict is Verdict.PROVED for record in records)
    return {
        "format": FORMAT,
        "summary": {"theorems": len(records), "proven": proven},
        "versions": {
            "python": ".".join(platform.python_version_tuple()[:2]),
            **{name: version(name) for name in _DISTRIBUTIONS},
        },
        "bounds": {"brute": brute.BOUNDS},
        "clauses": dict(CLAUSES),
        "theorems": entries,
        "witnesses": {
            "rows": _witnesses(records, ROWS_THEOREM, {f"row {row.number}": str(row.number) for row in ROWS}),
            "codes": _witnesses(records, CODES_THEOREM, {code.value: code.value for code in ViolationCode}),
        },
        "necessity": {need.dropped: {"theorem": need.theorem, "falls": need.falls} for need in needs},
        "times": {
            "total": round(seconds, 2),
            "theorems": {record.name: _times(record) for record in records},
        },
    }


def _entry(theorem: Theorem, record: Record) -> dict[str, object]:
    found = record.findings
    return {
        "clause": theorem.clause,
        "statement": theorem.statement,
        "verdict": record.verdict.value,
        "detail": record.detail,
        "bound": theorem.bound,
        "oracles": {
            name: {"verdict": run.result.verdict.value, "checked": run.result.checked, "unit": run.result.unit}
            for name, run in record.oracles.items()
        },
        "not_asked": {"brute": record.beyond} if record.beyond else {},
        "control": {
            "says": theorem.control,
            "verdicts": {name: result.verdict.value for name, result in record.controls.items()},
            "falls": found.control,
        },
        "formula": record.formula,
        "sources": {module: source_hash(module) for module in theorem.sources},
        "premises": [{"input": told, "claims": list(claims)} for told, claims in found.premises.items()],
        "reached": dict(found.reached),
        "needs": list(dict.fromkeys(premise for core in found.cores for premise in core)),
        "cores": [{"needs": list(core), "claims": list(claims)} for core, claims in found.cores.items()],
    }


def source_hash(module: str) -> str:
    """Hash the source of an installed module (SHA-256, hex). Raises LookupError where it has none."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise LookupError(f"{module} has no source")
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def _witnesses(records: Iterable[Record], theorem: str, keys: Mapping[str, str]) -> dict[str, str]:
    reached = next((record.findings.reached for record in records if record.name == theorem), {})
    return {key: reached[claim] for claim, key in keys.items() if claim in reached}


def _times(record: Record) -> dict[str, float]:
    oracles = {name: round(run.seconds, 2) for name, run in record.oracles.items()}
    return {"total": round(record.seconds, 2), **oracles}


def missing(needs: Sequence[Need], whole: Mapping[str, object]) -> list[str]:
    """List what the ledger of all theorems must have and has not: a need of every part, a witness of all."""
    problems = [
        f"without {need.dropped} every theorem still holds: nothing needs it" for need in needs if not need.theorem
    ]
    witnesses = whole["witnesses"]
    assert isinstance(witnesses, dict)
    problems += [f"row {row.number} has no witness" for row in ROWS if str(row.number) not in witnesses["rows"]]
    problems += [f"{code.value} has no witness" for code in ViolationCode if code.value not in witnesses["codes"]]
    return problems


def text(whole: Mapping[str, object]) -> str:
    """Write a ledger as JSON, in the one form in which it is committed."""
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
