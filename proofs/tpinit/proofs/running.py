"""Running theorems: each with its control, several at a time, and never taken for proven by accident."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context

from tpinit.proofs.claims import THEOREMS, Result, Theorem, Verdict

__all__ = ["Record", "judge", "run"]


@dataclass(frozen=True, slots=True)
class Record:
    """What became of one theorem: its verdict, what was checked, the control's verdict, and seconds."""

    name: str
    verdict: Verdict
    checked: int
    unit: str
    control: Verdict
    detail: str
    seconds: float


def judge(theorem: Theorem) -> Record:
    """Decide a theorem and its control. A control that is not refuted makes the theorem fail.

    Whatever goes wrong inside a proof is `unknown`, with the reason: never a pass, never a crash.
    """
    started = time.perf_counter()
    result = _guarded(theorem.prove)
    control = _guarded(theorem.refute)
    verdict, detail = result.verdict, result.detail
    if verdict is Verdict.PROVED and control.verdict is not Verdict.REFUTED:
        verdict = Verdict.CONTROL_SURVIVED
        detail = f"the control must fall and is {control.verdict.value}: {theorem.control}"
        detail += f" ({control.detail})" if control.detail else ""
    seconds = time.perf_counter() - started
    return Record(theorem.name, verdict, result.checked, result.unit, control.verdict, detail, seconds)


def _guarded(decide: Callable[[], Result]) -> Result:
    try:
        return decide()
    except Exception as exception:  # a proof that breaks is reported beside the others
        return Result(Verdict.UNKNOWN, detail=f"{type(exception).__name__}: {exception}")


def _judge_by_name(name: str) -> Record:
    import tpinit.proofs.theorems  # registers them in this process

    del tpinit
    return judge(THEOREMS[name])


# The longest first, so that no process is left alone with them at the end.
_SLOW = ("crosshair_group_size_mismatch", "crosshair_", "shipped_")


def _slowest_first(name: str) -> int:
    return next((place for place, start in enumerate(_SLOW) if name.startswith(start)), len(_SLOW))


def run(names: Sequence[str], jobs: int, done: Callable[[Record], None]) -> list[Record]:
    """Judge the named theorems in `jobs` processes; `done` hears of each as it ends. In the given order."""
    order = sorted(names, key=_slowest_first)
    records: dict[str, Record] = {}
    with ProcessPoolExecutor(min(jobs, len(names)), mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(_judge_by_name, name): name for name in order}
        try:
            for future in as_completed(waiting):
                record = future.result()
                records[record.name] = record
                done(record)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [records[name] for name in names]
