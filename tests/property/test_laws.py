"""How the decision on one input binds the decision on another (metamorphic laws)."""

import copy
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tpinit.conformance.oracle import oracle
from tpinit.conformance.strategies import groups, inputs, inputs_succeeding, inputs_violating, reached
from tpinit.reference.resolver import resolve
from tpinit.spec.vocabulary import (
    Call,
    Decision,
    Given,
    Group,
    Inputs,
    Mpu,
    Outcome,
    Section,
    Source,
    Violation,
    ViolationCode,
)

# --- adding agreeing information ----------------------------------------------------------------------

# From canonical to last resort: the definitions of section 4 for size and dtype; for the group, the last
# column of the table (a call's group or an mpu decides the row, and so stands before the section's).
SIZE_ORDER = (Source.CONFIG_AUTOTP_SIZE, Source.CONFIG_TP_SIZE, Source.CALL_TP_SIZE)
DTYPE_ORDER = (Source.CONFIG_DTYPE, Source.PRECISION, Source.CALL_DTYPE, Source.UNSET)
GROUP_ORDER = (
    Source.CALL_TP_GROUP,
    Source.MPU_TP_GROUP,
    Source.CONFIG_TP_GROUP,
    Source.MESH_TP_GROUP,
    Source.CREATED,
)

Addition = Callable[[Inputs, Decision], Inputs]


def in_section(**fields: str) -> Addition:
    """Set fields of the section to the decision's values; without one to agree with, leave the input alone."""

    def add(one: Inputs, decision: Decision) -> Inputs:
        assert one.section is not None
        values = {name: getattr(decision, effective).value for name, effective in fields.items()}
        return one if None in values.values() else replace(one, section=replace(one.section, **values))

    return add


def precision(one: Inputs, decision: Decision) -> Inputs:
    return replace(one, precision=decision.dtype.value or one.precision)


def mesh(one: Inputs, decision: Decision) -> Inputs:
    return replace(one, mesh=decision.tp_group.value or one.mesh)


def mpu(one: Inputs, decision: Decision) -> Inputs:
    group = decision.tp_group.value
    return one if group is None else replace(one, mpu=Mpu(group))


def call_group(one: Inputs, decision: Decision) -> Inputs:
    assert one.call is not None
    return replace(one, call=replace(one.call, tp_group=decision.tp_group.value))


def call(one: Inputs, decision: Decision) -> Inputs:
    size, dtype = decision.tp_size.value, decision.dtype.value
    assert size is not None
    return one if dtype is None else replace(one, call=Call(size, dtype))


def call_with_group(one: Inputs, decision: Decision) -> Inputs:
    added = call(one, decision)
    return one if added is one or decision.tp_group.value is None else call_group(added, decision)


def empty_section(one: Inputs, decision: Decision) -> Inputs:
    return replace(one, section=Section())


def whole_section(one: Inputs, decision: Decision) -> Inputs:
    size, dtype, group = decision.tp_size.value, decision.dtype.value, decision.tp_group.value
    return replace(one, section=Section(size, size, dtype, group))


SUCCEEDING_WITH_CONFIG = (3, 4, 7, 8, 11)
IN_SCOPE = (3, 4, 6, 7, 8, 9, 11)

# What is added, to which rows, and from where the same values then also come.
ADDITIONS: dict[str, tuple[Addition, tuple[int, ...], tuple[Source, ...]]] = {
    "config.autotp_size": (in_section(autotp_size="tp_size"), SUCCEEDING_WITH_CONFIG, (Source.CONFIG_AUTOTP_SIZE,)),
    "config.tp.tp_size": (in_section(tp_size="tp_size"), SUCCEEDING_WITH_CONFIG, (Source.CONFIG_TP_SIZE,)),
    "config.dtype": (in_section(dtype="dtype"), SUCCEEDING_WITH_CONFIG, (Source.CONFIG_DTYPE,)),
    "config.tp.tp_group": (in_section(tp_group="tp_group"), SUCCEEDING_WITH_CONFIG, (Source.CONFIG_TP_GROUP,)),
    "precision": (precision, (2, *IN_SCOPE), (Source.PRECISION,)),
    "mesh": (mesh, IN_SCOPE, (Source.MESH_TP_GROUP,)),
    "mpu": (mpu, (3, 4, 6, 7, 8), (Source.MPU_TP_GROUP,)),
    "call.tp_group": (call_group, (7, 9, 11), (Source.CALL_TP_GROUP,)),
    "call": (call, (3, 4), (Source.CALL_TP_SIZE, Source.CALL_DTYPE)),
    "call with its group": (call_with_group, (3,), (Source.CALL_TP_SIZE, Source.CALL_DTYPE, Source.CALL_TP_GROUP)),
    "an empty section": (empty_section, (6, 9), ()),
    "a whole section": (
        whole_section,
        (6, 9),
        (Source.CONFIG_AUTOTP_SIZE, Source.CONFIG_TP_SIZE, Source.CONFIG_DTYPE, Source.CONFIG_TP_GROUP),
    ),
}


def first(order: tuple[Source, ...], old: Source | None, added: tuple[Source, ...]) -> Source | None:
    """The most canonical of the old source and the added ones; a field without a source stays without."""
    if old is None:
        return None
    return min((old, *(source for source in added if source in order)), key=order.index)


@pytest.mark.parametrize("name", ADDITIONS)
def test_adding_agreeing_information_changes_no_effective_value(name: str) -> None:
    """P1-P3. A source changes only to the added one, and only where that is more canonical."""
    add, rows, sources = ADDITIONS[name]

    @settings(max_examples=60)
    @given(inputs_succeeding(*rows))
    def check(one: Inputs) -> None:
        before = resolve(one)
        more = add(one, before)
        after = resolve(more)
        assert not after.violations
        assert after.tp_size.value == before.tp_size.value
        assert after.dtype.value == before.dtype.value
        assert after.tp_group.value == before.tp_group.value
        if more == one:
            assert after == before
            return
        assert after.tp_size.source is first(SIZE_ORDER, before.tp_size.source, sources)
        assert after.dtype.source is first(DTYPE_ORDER, before.dtype.source, sources)
        assert after.tp_group.source is first(GROUP_ORDER, before.tp_group.source, sources)

    check()


@pytest.mark.parametrize("name", ADDITIONS)
def test_every_addition_really_adds(name: str) -> None:
    """The law above is not vacuous: each addition changes inputs, but where what it adds is there already."""
    add, rows, _ = ADDITIONS[name]
    changed = reached(
        inputs_succeeding(*rows), lambda one: [resolve(one).row] if add(one, resolve(one)) != one else [], 60
    )
    always_there = {"precision": {2}, "call.tp_group": {9, 11}}.get(name, set())
    assert changed
    assert changed <= set(rows) - always_there


@given(inputs_succeeding(6, 8))
def test_a_group_of_the_call_beside_an_mpu_is_refused_even_when_it_agrees(one: Inputs) -> None:
    """P4: the one agreement that is an error."""
    more = call_group(one, resolve(one))
    assert [violation.code for violation in resolve(more).violations] == [ViolationCode.GROUP_AND_MPU]


# --- renaming, carrying, repeating --------------------------------------------------------------------


def supplied(one: Inputs, *, averaging: bool = True) -> list[Group]:
    """Every group of an input; the one that averages, which decides nothing, only if `averaging`."""
    places = (
        one.call.tp_group if one.call else None,
        one.section.tp_group if one.section else None,
        one.mpu.tp_group if one.mpu else None,
        one.mpu.dp_group if one.mpu and averaging else None,
        one.mesh,
    )
    return [group for group in places if group is not None]


Names = dict[int, int]
GroupOrNone = TypeVar("GroupOrNone", Group, Group | None)


def named(group: GroupOrNone, names: Names) -> GroupOrNone:
    return Group(names[group.identity], group.size) if group is not None else group


def renamed_inputs(one: Inputs, names: Names) -> Inputs:
    return Inputs(
        one.world_size,
        one.call and replace(one.call, tp_group=named(one.call.tp_group, names)),
        one.section and replace(one.section, tp_group=named(one.section.tp_group, names)),
        one.precision,
        one.mpu and replace(one.mpu, tp_group=named(one.mpu.tp_group, names), dp_group=named(one.mpu.dp_group, names)),
        named(one.mesh, names),
    )


def renamed_decision(decision: Decision, names: Names) -> Decision:
    def in_evidence(evidence: Given[Any]) -> Given[Any]:
        value = evidence.value
        return Given(evidence.source, named(value, names)) if isinstance(value, Group) else evidence

    return replace(
        decision,
        tp_group=replace(decision.tp_group, value=named(decision.tp_group.value, names)),
        dp_group=named(decision.dp_group, names),
        violations=tuple(
            Violation(violation.code, tuple(in_evidence(evidence) for evidence in violation.given))
            for violation in decision.violations
        ),
    )


@settings(max_examples=300)
@given(inputs(), st.data())
def test_renaming_groups_renames_the_decision_and_nothing_else(one: Inputs, data: st.DataObject) -> None:
    old = sorted({group.identity for group in supplied(one)})
    new = data.draw(st.lists(st.integers(), min_size=len(old), max_size=len(old), unique=True))
    assert survives_renaming(resolve, one, dict(zip(old, new, strict=True)))


def survives_renaming(resolver: Callable[[Inputs], Decision], one: Inputs, names: Names) -> bool:
    return resolver(renamed_inputs(one, names)) == renamed_decision(resolver(one), names)


def test_a_resolver_that_looks_at_names_does_not_survive_renaming() -> None:
    def prefers_even_names(one: Inputs) -> Decision:
        odd = one.mesh is not None and one.mesh.identity % 2
        return resolve(replace(one, mesh=None) if odd else one)

    one = Inputs(4, section=Section(2), mesh=Group(1, 2))
    assert survives_renaming(resolve, one, {1: 6})
    assert not survives_renaming(prefers_even_names, one, {1: 6})


@given(inputs(), st.none() | groups(), st.dictionaries(st.text(), st.integers(), max_size=2))
def test_what_is_carried_decides_nothing(one: Inputs, dp_group: Group | None, carried: dict[str, object]) -> None:
    other = replace(
        one,
        mpu=one.mpu and replace(one.mpu, dp_group=dp_group),
        section=one.section and replace(one.section, carried=carried),
    )
    before, after = resolve(one), resolve(other)
    assert replace(after, dp_group=before.dp_group, carried=before.carried) == before


@given(inputs())
def test_a_handle_decides_nothing_and_comes_back(one: Inputs) -> None:
    def held(group: GroupOrNone) -> GroupOrNone:
        return Group(group.identity, group.size, ["handle", group.identity]) if group is not None else group

    other = replace(
        one,
        call=one.call and replace(one.call, tp_group=held(one.call.tp_group)),
        section=one.section and replace(one.section, tp_group=held(one.section.tp_group)),
        mpu=one.mpu and replace(one.mpu, tp_group=held(one.mpu.tp_group)),
        mesh=held(one.mesh),
    )
    decision = resolve(other)
    assert decision == resolve(one)
    if decision.tp_group.value is not None:
        assert decision.tp_group.value.handle == ["handle", decision.tp_group.value.identity]


@given(inputs())
def test_resolve_is_deterministic_and_changes_nothing(one: Inputs) -> None:
    if one.section is not None:
        one = replace(one, section=replace(one.section, carried={"tp": {"tp_grain_size": 2}}))
    before = copy.deepcopy(one)
    decision = resolve(one)
    assert one == before
    assert resolve(one) == decision
    assert resolve(before) == decision


def digest_with_hash_seed(seed: int) -> str:
    script = (
        "import hashlib\n"
        "from tpinit.conformance.domain import cases\n"
        "from tpinit.reference.resolver import resolve\n"
        "digest = hashlib.sha256()\n"
        "for index, one in enumerate(cases()):\n"
        "    if index % 1009 == 0:\n"
        "        digest.update(repr(resolve(one)).encode())\n"
        "print(digest.hexdigest())\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return run.stdout.strip()


def test_decisions_do_not_depend_on_the_order_of_hashing() -> None:
    first_digest = digest_with_hash_seed(1)
    assert len(first_digest) == hashlib.sha256().digest_size * 2
    assert digest_with_hash_seed(2) == first_digest


# --- removing the cause of a violation ----------------------------------------------------------------


def repaired(one: Inputs, code: ViolationCode) -> Inputs:
    """The input with the one thing mended that this violation, alone, is about."""
    sizes = (
        one.section.autotp_size if one.section else None,
        one.section.tp_size if one.section else None,
        one.call.tp_size if one.call else None,
    )
    size = next((size for size in sizes if size is not None), None)
    group = next(iter(supplied(one, averaging=False)), None)
    match code:
        case ViolationCode.NO_TP_INTENT:
            return replace(one, mpu=Mpu(one.mesh or Group(0, 1)), section=None)
        case ViolationCode.NO_GROUP_SOURCE:
            assert one.call is not None
            return replace(one, mpu=Mpu(one.mesh or Group(0, one.call.tp_size)))
        case ViolationCode.GROUP_AND_MPU:
            return replace(one, mpu=None)
        case ViolationCode.SIZE_MISSING:
            return with_size(one, 1 if group is None else group.size)
        case ViolationCode.SIZE_INVALID:
            return with_size(one, 1)
        case ViolationCode.SIZE_MISMATCH:
            return with_size(one, 1 if group is None else group.size)
        case ViolationCode.DTYPE_MISMATCH:
            return replace(
                one,
                precision=None,
                section=one.section and replace(one.section, dtype=one.call.dtype if one.call else None),
            )
        case ViolationCode.GROUP_IDENTITY_MISMATCH | ViolationCode.GROUP_SIZE_MISMATCH:
            assert group is not None
            assert size is not None
            return with_group(one, Group(group.identity, size))
        case ViolationCode.SIZE_NOT_DIVIDING_WORLD:
            assert size is not None
            return replace(one, world_size=one.world_size * size)


def with_size(one: Inputs, size: int) -> Inputs:
    return replace(
        one,
        call=one.call and replace(one.call, tp_size=size),
        section=one.section and replace(one.section, autotp_size=size, tp_size=size),
    )


def with_group(one: Inputs, group: Group) -> Inputs:
    return replace(
        one,
        call=one.call and replace(one.call, tp_group=one.call.tp_group and group),
        section=one.section and replace(one.section, tp_group=one.section.tp_group and group),
        mpu=one.mpu and Mpu(group),
        mesh=one.mesh and group,
    )


@pytest.mark.parametrize("code", ViolationCode)
def test_mending_the_cause_of_a_violation_alone_gives_success(code: ViolationCode) -> None:
    @settings(max_examples=50)
    @given(inputs_violating(code))
    def check(one: Inputs) -> None:
        assert resolve(one).outcome is Outcome.ERROR
        mended = repaired(one, code)
        assert resolve(mended).outcome is not Outcome.ERROR
        assert oracle(mended).outcome is not Outcome.ERROR

    check()
