"""Ask an implementation the vectors and judge its answers.

An implementation gets the input of a vector only. The runner asks every vector twice, the second time in reverse order
after a new start, to find answers that depend on earlier cases. One pass is enough if the adapter runs every case in a
process of its own.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from tpinit.conformance.adapters.inprocess import plain
from tpinit.conformance.dialects import CHOICES, permitted
from tpinit.conformance.messages import check_case, check_result
from tpinit.conformance.oracle import comparable, oracle
from tpinit.conformance.protocol import (
    FAULTS,
    Adapter,
    Answer,
    Broken,
    Crashed,
    Errored,
    Garbage,
    Implementation,
    KitError,
    Result,
    Skipped,
    TimedOut,
    answer_to_json,
)
from tpinit.conformance.report import CaseReport, CaseStatus, Difference, Report, fields_of
from tpinit.conformance.vectors import Vector, answer_of, to_inputs
from tpinit.reference.resolver import resolve

__all__ = ["RunOptions", "begin", "check_vectors", "compare", "conform", "judge"]

NO_DIALECT = "tpinit-no-such-dialect"
_VERDICTS: dict[type, CaseStatus] = {
    Skipped: CaseStatus.SKIPPED,
    Errored: CaseStatus.ERRORED,
    Crashed: CaseStatus.CRASHED,
    TimedOut: CaseStatus.TIMED_OUT,
    Garbage: CaseStatus.GARBAGE,
}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to ask and judge. `timeout` is in seconds per case; after `give_up` faults in a row the rest is not run.

    With `strict` a missing field is a difference. With `choices` False a permitted answer is a difference.
    """

    dialect: str = "documented"
    timeout: float = 10.0
    passes: int = 2
    jobs: int = 1
    give_up: int = 20
    strict: bool = False
    choices: bool = True
    spelled: str = ""
    selection: str = "all"


def check_vectors(vectors: Sequence[Vector]) -> None:
    """Check that every vector is well formed and that resolver and oracle give its expected answer.

    Raises KitError, which names the vector.
    """
    seen: set[str] = set()
    for vector in vectors:
        problems = check_case(vector.input) or check_result(vector.expected, vector.input)
        if problems:
            raise KitError(f"vector {vector.id} is malformed: {'; '.join(problems)}")
        if vector.id in seen:
            raise KitError(f"two vectors have the id {vector.id}")
        seen.add(vector.id)
        inputs = to_inputs(dict(vector.input))
        decision = resolve(inputs)
        if comparable(decision) != oracle(inputs):
            raise KitError(f"vector {vector.id}: the reference resolver and the oracle disagree")
        if answer_of(decision, dict(vector.input["groups"])) != vector.expected:
            raise KitError(f"vector {vector.id}: its expected answer is not the contract's")


def begin(adapter: Adapter, dialect: str) -> Implementation:
    """Start an implementation and agree on the dialect.

    Raises Broken if it does not start, does not speak the dialect, or claims to speak a dialect that does not exist.
    """
    who = adapter.start()
    if dialect not in who.dialects:
        raise Broken(f"{who.name} does not speak {dialect!r}, but: {', '.join(who.dialects) or 'nothing'}")
    if adapter.dialect(NO_DIALECT):
        raise Broken(f"{who.name} claims to speak {NO_DIALECT!r}, a dialect that does not exist")
    if not adapter.dialect(dialect):
        raise Broken(f"{who.name} lists the dialect {dialect!r} and then refuses it")
    return who


def compare(expected: dict[str, Any], answer: Result, *, strict: bool = False) -> tuple[Difference, ...]:
    """Return a Difference for each answered field with another value than expected, and for each observed fault."""
    given = fields_of(answer.answer)
    differences = [
        Difference(name, value, given.get(name))
        for name, value in fields_of(expected).items()
        if (name in given and _differ(given[name], value)) or (strict and name not in given)
    ]
    differences += [Difference(name, False, answer.observed[name]) for name in FAULTS if answer.observed.get(name)]
    return tuple(differences)


def _differ(given: object, expected: object) -> bool:
    return given != expected or isinstance(given, bool) != isinstance(expected, bool)


def judge(vector: Vector, answer: Answer, choices: tuple[str, ...] = (), *, strict: bool = False) -> CaseReport:
    """Judge one answer to one vector; `choices` names the permissive choices to apply."""
    expected = dict(vector.expected)
    case = CaseReport(
        id=vector.id,
        row=vector.row,
        clauses=tuple(vector.clauses),
        effect=str(vector.why.get("effect", "")),
        input=vector.input,
        expected=expected,
        verdict=CaseStatus.AGREED,
        answer=answer_to_json(answer),
    )
    if not isinstance(answer, Result):
        return replace(
            case, verdict=_VERDICTS[type(answer)], detail="" if isinstance(answer, Skipped) else answer.detail
        )
    differences = compare(expected, answer, strict=strict)
    case = replace(case, observed=plain(answer.observed) or None)
    if not differences:
        return case
    for name, instead in permitted(choices, vector.input, expected):
        if not compare(instead, answer, strict=strict):
            return replace(case, verdict=CaseStatus.PERMITTED, choice=name, differences=differences)
    return replace(case, verdict=CaseStatus.DISAGREED, differences=differences)


Reply = tuple["Answer | None", float]  # the answer (None: not asked), and seconds


def _ask(adapter: Adapter, vectors: Sequence[Vector], settings: RunOptions, ended: threading.Event) -> list[Reply]:
    """Ask a started implementation these vectors in this order, until `ended` is set."""
    replies: list[Reply] = []
    faults = 0
    for vector in vectors:
        if faults >= settings.give_up or ended.is_set():
            replies.append((None, 0.0))
            continue
        begun = time.perf_counter()
        answer = adapter.run(plain(vector.input), settings.timeout)
        replies.append((answer, time.perf_counter() - begun))
        faults = faults + 1 if isinstance(answer, (Crashed, TimedOut, Garbage)) else 0
    return replies


def _pass(
    opener: Callable[[], Adapter], vectors: Sequence[Vector], settings: RunOptions
) -> tuple[Implementation, list[Reply]]:
    """Ask all vectors once, with `settings.jobs` adapters in parallel. Raises Broken."""
    ended = threading.Event()

    def work(share: Sequence[Vector]) -> tuple[Implementation, list[Reply]]:
        adapter = opener()
        try:
            who = begin(adapter, settings.dialect)
            replies = _ask(adapter, share, settings, ended)
        except BaseException:
            with contextlib.suppress(Broken):  # the exception that is being raised matters more
                adapter.stop()
            raise
        adapter.stop()
        return who, replies

    jobs = max(1, min(settings.jobs, len(vectors)))
    if jobs == 1:
        return work(vectors)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            done = list(pool.map(work, [vectors[first::jobs] for first in range(jobs)]))
        finally:
            ended.set()  # if this thread is interrupted, the others must stop too
    if len({who for who, _ in done}) > 1:
        raise Broken("its processes report different implementations when started several times")
    replies: list[Reply] = [(None, 0.0)] * len(vectors)
    for first, (_, share) in enumerate(done):
        replies[first::jobs] = share
    return done[0][0], replies


def conform(opener: Callable[[], Adapter], vectors: Sequence[Vector], settings: RunOptions | None = None) -> Report:
    """Ask an implementation all vectors and return the report. Raises KitError if the kit itself is wrong."""
    settings = settings or RunOptions()
    check_vectors(vectors)
    begun = time.perf_counter()
    unknown = Implementation(settings.spelled or "unknown", "unknown", "unknown")
    try:
        who, replies = _pass(opener, vectors, settings)
    except Broken as error:
        nothing = _cases(unknown, vectors, [(None, 0.0)] * len(vectors), settings)
        return _report(unknown, nothing, settings, begun, broken=str(error))
    cases = _cases(who, vectors, replies, settings)
    if settings.passes > 1 and not who.isolated:
        answered = [
            index for index, (answer, _) in enumerate(replies) if isinstance(answer, (Result, Skipped, Errored))
        ]
        second_order = answered[::-1]
        try:
            _, second_replies = _pass(opener, [vectors[index] for index in second_order], settings)
        except Broken as error:
            return _report(who, cases, settings, begun, broken=f"asked a second time: {error}")
        for index, (second, _) in zip(second_order, second_replies, strict=True):
            cases[index] = _with_second_answer(cases[index], second)
    return _report(who, cases, settings, begun)


def _cases(
    who: Implementation, vectors: Sequence[Vector], replies: Sequence[Reply], settings: RunOptions
) -> list[CaseReport]:
    choices = who.choices if settings.choices else ()
    cases = []
    for vector, (answer, seconds) in zip(vectors, replies, strict=True):
        if answer is None:
            case = replace(judge(vector, Skipped("")), verdict=CaseStatus.NOT_RUN, answer=None)
        else:
            case = judge(vector, answer, choices, strict=settings.strict)
        cases.append(replace(case, seconds=round(seconds, 6)))
    return cases


def _with_second_answer(case: CaseReport, answer: Answer | None) -> CaseReport:
    """Return the case unchanged if the second answer equals the first, else with the status UNSTABLE."""
    second = None if answer is None else answer_to_json(answer)
    if second == case.answer:
        return case
    detail = f"in order it answers {case.answer}, in the reverse order {second}"
    return replace(case, verdict=CaseStatus.UNSTABLE, detail=detail, choice=None)


def _report(
    who: Implementation, cases: Sequence[CaseReport], settings: RunOptions, begun: float, broken: str | None = None
) -> Report:
    return Report(
        name=who.name,
        version=who.version,
        language=who.language,
        spelled=settings.spelled,
        dialect=settings.dialect,
        choices=tuple(name for name in who.choices if name in CHOICES),
        selection=settings.selection,
        cases=tuple(cases),
        broken=broken,
        seconds=round(time.perf_counter() - begun, 3),
    )
