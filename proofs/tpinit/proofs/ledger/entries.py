"""The ledger as plain data: the results of `tpinit prove`, as they are written, compared and shown.

Times are in an object of their own, so that a ledger without it is the same on every run.
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
from tpinit.proofs.ledger.closure import rests_on
from tpinit.proofs.ledger.necessity import NecessityResult
from tpinit.proofs.lint import CLAUSES
from tpinit.proofs.running import TheoremResult
from tpinit.spec.table import ROWS
from tpinit.spec.vocabulary import ViolationCode

__all__ = ["FORMAT", "ledger", "missing", "source_hash", "text"]

FORMAT = "tpinit-ledger/1"
ROWS_THEOREM, CODES_THEOREM = "every_row_is_reachable", "every_violation_is_reachable_alone"
_DISTRIBUTIONS = ("z3-solver", "cvc5", "crosshair-tool", "python-sat", "numpy")


def ledger(
    theorems: Mapping[str, Theorem], results: Sequence[TheoremResult], needs: Sequence[NecessityResult], seconds: float
) -> dict[str, object]:
    """Return the ledger of these results as plain data that JSON can hold."""
    entries = {result.name: _entry(theorems[result.name], result) for result in results}
    proven = sum(result.verdict is Verdict.PROVED for result in results)
    return {
        "format": FORMAT,
        "summary": {"theorems": len(results), "proven": proven},
        "versions": {
            "python": ".".join(platform.python_version_tuple()[:2]),
            **{name: version(name) for name in _DISTRIBUTIONS},
        },
        "bounds": {"brute": brute.BOUNDS},
        "rests_on": {module: source_hash(module) for module in rests_on()},
        "clauses": dict(CLAUSES),
        "theorems": entries,
        "witnesses": {
            "rows": _witnesses(results, ROWS_THEOREM, {f"row {row.number}": str(row.number) for row in ROWS}),
            "codes": _witnesses(results, CODES_THEOREM, {code.value: code.value for code in ViolationCode}),
        },
        "necessity": {need.dropped: {"theorem": need.theorem, "falls": need.falls} for need in needs},
        "times": {
            "total": round(seconds, 2),
            "theorems": {result.name: _times(result) for result in results},
        },
    }


def _entry(theorem: Theorem, result: TheoremResult) -> dict[str, object]:
    found = result.evidence
    return {
        "clause": theorem.clause,
        "statement": theorem.statement,
        "verdict": result.verdict.value,
        "detail": result.detail,
        "bound": theorem.bound,
        "oracles": {
            name: {
                "verdict": run.result.verdict.value,
                "checked": run.result.checked,
                "unit": run.result.unit,
                "claims": result.claims - len(run.result.skipped),
            }
            for name, run in result.oracles.items()
        },
        "claims": result.claims,
        "not_decided_by": {"brute": dict(result.not_by_brute)} if result.not_by_brute else {},
        "control": {
            "says": theorem.control,
            "verdicts": {name: result.verdict.value for name, result in result.controls.items()},
            "falls": found.control,
        },
        "formula": result.formula,
        "sources": {module: source_hash(module) for module in theorem.sources},
        "premises": [{"input": text, "claims": list(claims)} for text, claims in found.premises.items()],
        "reached": dict(found.reached),
        "needs": list(dict.fromkeys(premise for core in found.cores for premise in core)),
        "cores": [{"needs": list(core), "claims": list(claims)} for core, claims in found.cores.items()],
    }


def source_hash(module: str) -> str:
    """Return the SHA-256 (hex) of the source file of a module. Raises LookupError where it has none."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise LookupError(f"{module} has no source")
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def _witnesses(results: Iterable[TheoremResult], theorem: str, keys: Mapping[str, str]) -> dict[str, str]:
    reached = next((result.evidence.reached for result in results if result.name == theorem), {})
    return {key: reached[claim] for claim, key in keys.items() if claim in reached}


def _times(result: TheoremResult) -> dict[str, float]:
    oracles = {name: round(run.seconds, 2) for name, run in result.oracles.items()}
    return {"total": round(result.seconds, 2), **oracles}


def missing(needs: Sequence[NecessityResult], entire: Mapping[str, object]) -> list[str]:
    """Return the gaps of a ledger of all theorems: parts that no theorem needs, rows and violations without witness."""
    problems = [
        f"without {need.dropped} every theorem still holds: no theorem needs it" for need in needs if not need.theorem
    ]
    witnesses = entire["witnesses"]
    assert isinstance(witnesses, dict)
    problems += [f"row {row.number} has no witness" for row in ROWS if str(row.number) not in witnesses["rows"]]
    problems += [f"{code.value} has no witness" for code in ViolationCode if code.value not in witnesses["codes"]]
    return problems


def text(entire: Mapping[str, object]) -> str:
    """Return a ledger as JSON text, in the form in which it is committed."""
    return json.dumps(entire, indent=1, ensure_ascii=False) + "\n"
