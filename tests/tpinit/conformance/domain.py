"""A small finite domain, enumerated completely: every input with these sizes, dtypes, groups and world sizes.

The few values cover every relation that the contract distinguishes: sizes that are negative, 0 (D2) or valid, that
divide the world or not, that equal a group's size or not; groups that are the same, that differ in identity only, or
in identity and size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

from tpinit.conformance.oracle import ComparableDecision
from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Mpu, Section, Source, ViolationCode

__all__ = ["CALL_SIZES", "EVERY_FEATURE", "GROUP_PAIRS", "WORLD_SIZES", "cases", "features", "shape"]

CALL_SIZES: tuple[int, ...] = (2, 3, 0)
CALL_DTYPES: tuple[DType, ...] = (DType.BF16, DType.FP16)
AUTOTP_SIZES: tuple[int | None, ...] = (None, 2, 3, 0, -1)
SECTION_TP_SIZES: tuple[int | None, ...] = (None, 2, 3, 0)
SECTION_DTYPES: tuple[DType | None, ...] = (None, DType.BF16, DType.FP16)
PRECISIONS: tuple[DType | None, ...] = (None, DType.BF16)
WORLD_SIZES: tuple[int, ...] = (6, 4, 1)

# One identity has one size, so the second group of another size needs a world of its own.
GROUP_PAIRS: tuple[tuple[Group, Group], ...] = ((Group(1, 2), Group(2, 2)), (Group(1, 2), Group(2, 3)))

# The sources of effective values: all but the world size, which occurs in the evidence of a violation only.
EFFECTIVE_SOURCES: frozenset[Source] = frozenset(Source) - {Source.WORLD_SIZE}

EVERY_FEATURE: frozenset[str] = frozenset(
    [f"row {number}" for number in range(1, 13)]
    + [f"{code.value} alone" for code in ViolationCode]
    + [f"from {source.value}" for source in EFFECTIVE_SOURCES]
    + ["section disabled", "several violations"]
)


def cases() -> Iterator[Inputs]:
    """Yield every input of the domain once. Cases share their (frozen) parts."""
    for pair in GROUP_PAIRS:
        yield from _cases(pair, seen_before=pair != GROUP_PAIRS[0])


def _cases(pair: tuple[Group, Group], *, seen_before: bool) -> Iterator[Inputs]:
    """Yield every input whose groups are of this pair; with `seen_before` only those that use its second group."""
    second = pair[1]
    groups = (None, *pair)
    calls = [None, *(Call(size, dtype, group) for group, size, dtype in product(groups, CALL_SIZES, CALL_DTYPES))]
    sections = [
        None,
        *(
            Section(autotp_size, tp_size, dtype, group)
            for group, dtype, autotp_size, tp_size in product(groups, SECTION_DTYPES, AUTOTP_SIZES, SECTION_TP_SIZES)
        ),
    ]
    outside = list(product(groups, (None, *map(Mpu, pair)), PRECISIONS, WORLD_SIZES))
    for call in calls:
        for section in sections:
            in_call = call is not None and call.tp_group is second
            new = not seen_before or in_call or (section is not None and section.tp_group is second)
            for mesh, mpu, precision, world_size in outside:
                if new or mesh is second or (mpu is not None and mpu.tp_group is second):
                    yield Inputs(world_size, call, section, precision, mpu, mesh)


Shape = tuple[int, tuple[ViolationCode, ...], "Source | None", "Source | None", "Source | None", bool]


def shape(decision: ComparableDecision) -> Shape:
    """Return the row, the codes, the three sources and D2 of a decision, without its values."""
    sources = decision.tp_size.source, decision.dtype.source, decision.tp_group.source
    return decision.row, decision.codes, *sources, decision.section_disabled


def features(shapes: Iterable[Shape]) -> frozenset[str]:
    """Return the members of `EVERY_FEATURE` that these answers show: rows, single violations, sources, D2."""
    found: set[str] = set()
    for row, codes, size_from, dtype_from, group_from, disabled in shapes:
        found.add(f"row {row}")
        found.update(f"from {source.value}" for source in (size_from, dtype_from, group_from) if source is not None)
        if len(codes) == 1:
            found.add(f"{codes[0].value} alone")
        if len(codes) > 1:
            found.add("several violations")
        if disabled:
            found.add("section disabled")
    return frozenset(found)
