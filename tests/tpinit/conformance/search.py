"""Search beyond the vectors: Hypothesis generates cases, and each wrong answer becomes a vector.

Inputs come from `strategies.inputs()`. Variants replace one size by another in every position, so that boundary values
(powers of two and ten, and their neighbours) occur everywhere while values that agreed still agree. A wrong case is
shrunk; then the search continues for cases that are wrong in another way. Needs Hypothesis (the extra `conformance`).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import DrawFn
from tpinit.conformance._draw import BOOLS, pick
from tpinit.conformance.adapters.inprocess import plain
from tpinit.conformance.oracle import comparable, oracle
from tpinit.conformance.protocol import Adapter, Implementation, KitError, Skipped
from tpinit.conformance.report import CaseReport, CaseStatus
from tpinit.conformance.runner import begin, judge
from tpinit.conformance.strategies import inputs
from tpinit.conformance.vector_files import vector_from_case
from tpinit.conformance.vectors import Vector, input_of
from tpinit.reference.resolver import resolve
from tpinit.spec.vocabulary import DType, Group, Inputs

__all__ = ["BOUNDARIES", "SearchResult", "families", "search"]

# Values at the limits of machine integers and of floats, where fixed-width arithmetic fails.
BOUNDARIES: tuple[int, ...] = tuple(
    sorted(
        {2**bits + step for bits in (7, 8, 15, 16, 23, 24, 31, 32, 53, 63, 64) for step in (-1, 0, 1)}
        | {10**digits for digits in (2, 3, 6, 9, 18, 20)}
        | {12, 24, 48, 72, 96, 100, 1024}
    )
)
GOOD = frozenset({CaseStatus.AGREED, CaseStatus.PERMITTED, CaseStatus.SKIPPED})


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of a search: the implementation, counts, and one shrunk case for each kind of wrong answer."""

    who: Implementation
    asked: int
    skipped: int
    found: tuple[tuple[Vector, CaseReport], ...]


@dataclass(slots=True)
class _Asking:
    """Asks cases, counts them, and finds wrong answers of a kind that was not found before."""

    adapter: Adapter
    choices: tuple[str, ...]
    timeout: float
    strict: bool
    asked: int = 0
    skipped: int = 0
    ways: set[tuple[Any, ...]] = field(default_factory=set)
    judgements: dict[Inputs, CaseReport] = field(default_factory=dict)

    def judged(self, case: Inputs) -> tuple[Vector, CaseReport]:
        if comparable(resolve(case)) != oracle(case):
            raise KitError(f"the reference resolver and the oracle disagree: {case}")
        vector = vector_from_case(input_of(case), "FOUND_BY_SEARCH", "")
        self.asked += 1
        answer = self.adapter.run(plain(vector.input), self.timeout)
        self.skipped += isinstance(answer, Skipped)
        return vector, judge(vector, answer, self.choices, strict=self.strict)

    def new(self, family: tuple[Inputs, ...]) -> Inputs | None:
        """Return the first case whose answer is wrong in a new way, or None."""
        return next((case for case in family if self._is_new(case)), None)

    def _is_new(self, case: Inputs) -> bool:
        # Keep the first answer: Hypothesis reports a case that fails once and passes later as a flaky test.
        if case not in self.judgements:
            self.judgements[case] = self.judged(case)[1]
        report = self.judgements[case]
        return report.verdict not in GOOD and _way(report) not in self.ways


def _way(report: CaseReport) -> tuple[Any, ...]:
    """Return the key by which wrong answers count as one mistake: the status and the names of the wrong fields.

    The row is not part of the key: one mistake shows in many rows, and shrinking finds the first of them.
    """
    return report.verdict, tuple(sorted(difference.field for difference in report.differences))


@st.composite
def families(draw: DrawFn) -> tuple[Inputs, ...]:
    """Draw a legal input and, usually, variants in which boundary values replace one of its sizes.

    Each input gives several cases because drawing takes longer than asking.
    """
    drawn = draw(_INPUTS)
    if drawn.precision is DType.FP32:
        drawn = replace(drawn, precision=None)  # no config says precision fp32 (D6)
    sizes = _sizes(drawn)
    if not sizes or not draw(BOOLS):
        return (drawn,)
    old, first = pick(draw, sizes), pick(draw, range(_STRIDE))
    return drawn, *(_resized(drawn, {old: new}) for new in BOUNDARIES[first::_STRIDE])


_STRIDE = 8
_INPUTS = inputs()


def _groups(case: Inputs) -> list[Group]:
    holders = (case.call, case.section, case.mpu)
    groups = [case.mesh, *(None if holder is None else holder.tp_group for holder in holders)]
    return [group for group in groups if group is not None]


def _sizes(case: Inputs) -> list[int]:
    given = [group.size for group in _groups(case)]
    given += [] if case.call is None else [case.call.tp_size]
    section = case.section
    given += [] if section is None else [size for size in (section.autotp_size, section.tp_size) if size is not None]
    return sorted({size for size in given if size > 0})


def _resized(case: Inputs, to: dict[int, int]) -> Inputs:
    """Return the case with a size replaced everywhere; a world that it divided stays a multiple of the new size."""

    def resized(group: Group | None) -> Group | None:
        return group and replace(group, size=to.get(group.size, group.size))

    ((old, new),) = to.items()
    world = case.world_size // old * new if case.world_size % old == 0 else case.world_size
    call = case.call and replace(
        case.call, tp_size=to.get(case.call.tp_size, case.call.tp_size), tp_group=resized(case.call.tp_group)
    )
    section = case.section
    if section is not None:
        autotp, tp = section.autotp_size, section.tp_size
        section = replace(
            section,
            autotp_size=None if autotp is None else to.get(autotp, autotp),
            tp_size=None if tp is None else to.get(tp, tp),
            tp_group=resized(section.tp_group),
        )
    mpu = case.mpu and replace(case.mpu, tp_group=resized(case.mpu.tp_group) or case.mpu.tp_group)
    return Inputs(world, call, section, case.precision, mpu, resized(case.mesh))


def search(
    opener: Callable[[], Adapter],
    *,
    dialect: str = "documented",
    examples: int = 1000,
    most: int = 10,
    timeout: float = 10.0,
    strict: bool = False,
    choices: bool = True,
    seed: int = 0,
) -> SearchResult:
    """Ask about `examples` cases, shrink a wrong one, and repeat until no new kind is found or `most` were found.

    Raises Broken if the implementation does not start, and KitError if resolver and oracle disagree.
    """
    adapter = opener()
    try:
        who = begin(adapter, dialect)
        asking = _Asking(adapter, who.choices if choices else (), timeout, strict)
        found: list[tuple[Vector, CaseReport]] = []
        while len(found) < most:
            smallest = _smallest(asking, examples, random.Random(seed + len(found)))
            if smallest is None:
                break
            vector, report = asking.judged(smallest)
            before = asking.judgements[smallest]
            asking.ways |= {_way(before), _way(report)}
            if report.answer != before.answer:
                detail = f"it first answers {before.answer}, and asked again {report.answer}"
                report = replace(report, verdict=CaseStatus.UNSTABLE, detail=detail)
            found.append((replace(vector, why={"flag": "FOUND_BY_SEARCH", "effect": _effect(who, report)}), report))
        return SearchResult(who, asking.asked, asking.skipped, tuple(found))
    finally:
        with contextlib.suppress(Exception):  # an error of `stop` must not replace the first exception
            adapter.stop()


def _smallest(asking: _Asking, examples: int, generator: random.Random) -> Inputs | None:
    try:
        family = find(
            families(),
            lambda family: asking.new(family) is not None,
            settings=settings(
                max_examples=max(1, examples // 4),  # an example has about 4 cases
                deadline=None,
                database=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
            random=generator,
        )
    except NoSuchExample:
        return None
    return asking.new(family)


def _effect(who: Implementation, report: CaseReport) -> str:
    fields = ", ".join(difference.field for difference in report.differences) or report.verdict.value
    return f"{who.name} {who.version} gets this wrong: {fields}"
