"""Running theorems: every oracle, each with its control, and never taken for proven by accident."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context

from tpinit.proofs import brute
from tpinit.proofs.claims import THEOREMS, Claim, Result, Theorem, Verdict, right_model
from tpinit.proofs.ledger.findings import Findings, explain
from tpinit.proofs.solvers import SOLVERS, decide_all, digest

__all__ = ["OracleRun", "Record", "judge", "run"]


@dataclass(frozen=True, slots=True)
class OracleRun:
    """What one oracle said of a theorem: its result, and the seconds it took."""

    result: Result
    seconds: float


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one theorem.

    `oracles` has what each said; `beyond` why the small domain could not be asked, where it could not.
    `controls` has each oracle's verdict on the control. `formula` is the digest of what was proven.
    `findings` has witnesses and cores, where they were asked for.
    """

    name: str
    verdict: Verdict
    detail: str = ""
    oracles: Mapping[str, OracleRun] = field(default_factory=dict)
    controls: Mapping[str, Result] = field(default_factory=dict)
    beyond: str = ""
    formula: str = ""
    seconds: float = 0.0
    findings: Findings = field(default_factory=Findings)


def judge(theorem: Theorem, explained: bool = False) -> Record:
    """Decide a theorem and its control by every oracle that can, and find witnesses and cores if asked to.

    All must agree. A control that is not refuted makes the theorem fail. Whatever goes wrong inside a
    proof is `unknown`, with the reason: never a pass, never a crash.
    """
    started = time.perf_counter()
    try:
        record = _by_claims(theorem) if theorem.claims is not None else _by_engine(theorem)
    except Exception as exception:  # a theorem that breaks is reported beside the others
        record = Record(theorem.name, Verdict.UNKNOWN, _told(exception))
    record = replace(record, seconds=time.perf_counter() - started)
    return _explained(theorem, record) if explained and record.verdict is Verdict.PROVED else record


def _explained(theorem: Theorem, record: Record) -> Record:
    try:
        return replace(record, findings=explain(theorem))
    except Exception as exception:  # what is proven and can't be explained is not understood: not a pass
        return replace(record, verdict=Verdict.UNKNOWN, detail=f"no witness or core: {_told(exception)}")


def _by_claims(theorem: Theorem) -> Record:
    assert theorem.claims is not None
    assert theorem.mutant is not None
    claims = list(theorem.claims(right_model()))
    wrong = list(theorem.claims(theorem.mutant.apply(right_model())))
    oracles = {name: _timed(partial(decide_all, claims, solve)) for name, solve in SOLVERS.items()}
    controls = {name: _guarded(partial(decide_all, wrong, solve)) for name, solve in SOLVERS.items()}
    beyond = "" if any(not claim.beyond for claim in claims) else _reasons(claims)
    if not beyond:
        oracles["brute"] = _timed(partial(brute.decide_all, claims))
    return _summed_up(theorem, oracles, controls, beyond, digest(claims))


def _reasons(claims: Sequence[Claim]) -> str:
    return "; ".join(sorted({claim.beyond for claim in claims}))


def _by_engine(theorem: Theorem) -> Record:
    assert theorem.prove is not None
    assert theorem.refute is not None
    oracles = {theorem.engine: _timed(theorem.prove)}
    return _summed_up(theorem, oracles, {theorem.engine: _guarded(theorem.refute)}, "", "")


def _summed_up(
    theorem: Theorem, oracles: Mapping[str, OracleRun], controls: Mapping[str, Result], beyond: str, formula: str
) -> Record:
    verdicts = {name: run.result.verdict for name, run in oracles.items()}
    failed = {name: verdict for name, verdict in verdicts.items() if verdict is not Verdict.PROVED}
    survived = {name: result for name, result in controls.items() if result.verdict is not Verdict.REFUTED}
    verdict, detail = Verdict.PROVED, ""
    if failed:
        name, verdict = next(iter(failed.items()))
        detail = oracles[name].result.detail
        if len(set(verdicts.values())) > 1 and Verdict.UNKNOWN not in verdicts.values():
            verdict = Verdict.DISAGREEMENT
            detail = ", ".join(f"{oracle} says {said.value}" for oracle, said in verdicts.items()) + f": {detail}"
    elif survived:
        name, result = next(iter(survived.items()))
        verdict = Verdict.CONTROL_SURVIVED
        detail = f"the control must fall and is {result.verdict.value} by {name}: {theorem.control}"
        detail += f" ({result.detail})" if result.detail else ""
    return Record(theorem.name, verdict, detail, oracles, controls, beyond, formula)


def _timed(decide: Callable[[], Result]) -> OracleRun:
    started = time.perf_counter()
    result = _guarded(decide)
    return OracleRun(result, time.perf_counter() - started)


def _guarded(decide: Callable[[], Result]) -> Result:
    try:
        return decide()
    except Exception as exception:  # an oracle that breaks is reported beside the others
        return Result(Verdict.UNKNOWN, detail=_told(exception))


def _told(exception: BaseException) -> str:
    return f"{type(exception).__name__}: {exception}"


def _judge_by_name(name: str, explained: bool) -> Record:
    import tpinit.proofs.theorems  # registers them in this process

    del tpinit
    return judge(THEOREMS[name], explained)


# The longest first, so that no process is left alone with them at the end.
_SLOW = ("crosshair_group_size_mismatch", "crosshair_", "shipped_")


def _slowest_first(name: str) -> int:
    return next((place for place, start in enumerate(_SLOW) if name.startswith(start)), len(_SLOW))


def run(names: Sequence[str], jobs: int, done: Callable[[Record], None], explained: bool = False) -> list[Record]:
    """Judge the named theorems in `jobs` processes; `done` hears of each as it ends. In the given order.

    With `explained`, witnesses and cores are found too.
    """
    order = sorted(names, key=_slowest_first)
    records: dict[str, Record] = {}
    with ProcessPoolExecutor(min(jobs, len(names)), mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_judge_by_name, name, explained): name for name in order}
        try:
            for future in as_completed(waiting):
                record = future.result()
                records[record.name] = record
                done(record)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [records[name] for name in names]
