"""Run theorems with every oracle and their controls. An error inside a proof is `unknown`, never a pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from tpinit.proofs import brute
from tpinit.proofs.claims import THEOREMS, CheckResult, Theorem, Verdict, right_model
from tpinit.proofs.exploring import Unsupported
from tpinit.proofs.ledger.evidence import ProofEvidence, explain
from tpinit.proofs.processes import in_processes
from tpinit.proofs.solvers import SOLVERS, decide_all, digest

__all__ = ["OracleRun", "TheoremResult", "judge", "run"]


@dataclass(frozen=True, slots=True)
class OracleRun:
    """The result of one oracle for a theorem, and the seconds it took."""

    result: CheckResult
    seconds: float


@dataclass(frozen=True, slots=True)
class TheoremResult:
    """The result of one theorem.

    `oracles` maps each oracle to its run, `controls` maps each oracle to its result for the control.
    `claims` is the number of claims, 0 for a theorem with an engine; `not_by_brute` maps the label of each claim that
    brute force does not decide to the reason. `formula` is the SHA-256 of the claims. `evidence` holds witnesses and
    cores, empty unless requested.
    """

    name: str
    verdict: Verdict
    detail: str = ""
    oracles: Mapping[str, OracleRun] = field(default_factory=dict)
    controls: Mapping[str, CheckResult] = field(default_factory=dict)
    claims: int = 0
    not_by_brute: Mapping[str, str] = field(default_factory=dict)
    formula: str = ""
    seconds: float = 0.0
    evidence: ProofEvidence = field(default_factory=ProofEvidence)


def judge(theorem: Theorem, explained: bool = False) -> TheoremResult:
    """Decide a theorem and its control by every oracle that applies; with `explained`, find witnesses and cores too.

    All oracles must agree. A control that is not refuted makes the theorem fail. An exception inside a proof
    gives the verdict `unknown` with the exception as detail: never a pass, never a crash.
    """
    started = time.perf_counter()
    try:
        result = _by_claims(theorem) if theorem.claims is not None else _by_engine(theorem)
    except (Exception, Unsupported) as exception:  # one broken theorem must not hide the others
        result = TheoremResult(theorem.name, Verdict.UNKNOWN, _told(exception))
    result = replace(result, seconds=time.perf_counter() - started)
    return _explained(theorem, result) if explained and result.verdict is Verdict.PROVED else result


def _explained(theorem: Theorem, result: TheoremResult) -> TheoremResult:
    try:
        return replace(result, evidence=explain(theorem))
    except Exception as exception:  # a proof without evidence is no pass
        return replace(result, verdict=Verdict.UNKNOWN, detail=f"no witness or core: {_told(exception)}")


def _by_claims(theorem: Theorem) -> TheoremResult:
    assert theorem.claims is not None
    assert theorem.mutant is not None
    claims = list(theorem.claims(right_model()))
    mutated = list(theorem.claims(theorem.mutant.apply(right_model())))
    oracles = {name: _timed(partial(decide_all, claims, solve)) for name, solve in SOLVERS.items()}
    controls = {name: _guarded(partial(decide_all, mutated, solve)) for name, solve in SOLVERS.items()}
    reasons = [(claim.label, brute.why_not(claim)) for claim in claims]
    if not all(reason for _, reason in reasons):
        oracles["brute"] = _timed(partial(brute.decide_all, claims))
    left_out = {label: reason for label, reason in reasons if reason}
    result = _summed_up(theorem, oracles, controls)
    return replace(result, claims=len(claims), not_by_brute=left_out, formula=digest(claims))


def _by_engine(theorem: Theorem) -> TheoremResult:
    assert theorem.prove is not None
    assert theorem.refute is not None
    oracles = {theorem.engine: _timed(theorem.prove)}
    return _summed_up(theorem, oracles, {theorem.engine: _guarded(theorem.refute)})


def _summed_up(
    theorem: Theorem, oracles: Mapping[str, OracleRun], controls: Mapping[str, CheckResult]
) -> TheoremResult:
    verdicts = {name: run.result.verdict for name, run in oracles.items()}
    failed = {name: verdict for name, verdict in verdicts.items() if verdict is not Verdict.PROVED}
    survived = {name: result for name, result in controls.items() if result.verdict is not Verdict.REFUTED}
    verdict, detail = Verdict.PROVED, ""
    if failed:
        name, verdict = next(iter(failed.items()))
        detail = oracles[name].result.detail
        if len(set(verdicts.values())) > 1 and Verdict.UNKNOWN not in verdicts.values():
            verdict = Verdict.DISAGREEMENT
            detail = ", ".join(f"{oracle} says {each.value}" for oracle, each in verdicts.items()) + f": {detail}"
    elif survived:
        name, result = next(iter(survived.items()))
        verdict = Verdict.CONTROL_SURVIVED
        detail = f"the control must be refuted, but {name} says {result.verdict.value}: {theorem.control}"
        detail += f" ({result.detail})" if result.detail else ""
    return TheoremResult(theorem.name, verdict, detail, oracles, controls)


def _timed(decide: Callable[[], CheckResult]) -> OracleRun:
    started = time.perf_counter()
    result = _guarded(decide)
    return OracleRun(result, time.perf_counter() - started)


def _guarded(decide: Callable[[], CheckResult]) -> CheckResult:
    try:
        return decide()
    except (Exception, Unsupported) as exception:  # one broken oracle must not hide the others
        return CheckResult(Verdict.UNKNOWN, detail=_told(exception))


def _told(exception: BaseException) -> str:
    return f"{type(exception).__name__}: {exception}"


def _judge_by_name(name: str, explained: bool) -> TheoremResult:
    import tpinit.proofs.theorems  # registers them in this process

    del tpinit
    return judge(THEOREMS[name], explained)


# The longest theorems start first, so that no process runs one of them alone at the end.
_SLOW = ("crosshair_group_size_mismatch", "crosshair_", "shipped_resolve", "shipped_", "translated_")


def _slowest_first(name: str) -> int:
    return next((place for place, start in enumerate(_SLOW) if name.startswith(start)), len(_SLOW))


def run(
    names: Sequence[str], jobs: int, done: Callable[[TheoremResult], None], explained: bool = False
) -> list[TheoremResult]:
    """Judge the named theorems in `jobs` processes and return their results in the order of `names`.

    `done` is called with each result as it arrives. With `explained`, witnesses and cores are found too. However it
    ends, no process is left. Raises StoppedBySignal as `in_processes` does.
    """
    order = sorted(names, key=_slowest_first)
    results: dict[str, TheoremResult] = {}
    for result in in_processes(_judge_by_name, [(name, explained) for name in order], jobs):
        results[result.name] = result
        done(result)
    return [results[name] for name in names]
