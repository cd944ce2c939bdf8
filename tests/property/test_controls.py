"""Negative controls: a resolver that is wrong anywhere in the domain differs from the oracle somewhere in it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import pytest
from tpinit.conformance.domain import cases
from tpinit.conformance.oracle import comparable, first_disagreement, oracle
from tpinit.reference.resolver import resolve
from tpinit.spec.vocabulary import (
    Decision,
    DType,
    Effective,
    Inputs,
    Outcome,
    Source,
    Violation,
    ViolationCode,
)

Wrong = Callable[[Inputs], Decision]


def codes_of(decision: Decision) -> list[ViolationCode]:
    return [violation.code for violation in decision.violations]


def also(code: ViolationCode, decision: Decision) -> Decision:
    """The decision with one violation more, in its canonical place."""
    held = {*codes_of(decision), code}
    violations = tuple(Violation(each) for each in ViolationCode if each in held)
    nothing = Decision(decision.row, Outcome.ERROR)
    return replace(nothing, violations=violations, section_disabled=decision.section_disabled)


def one_size_is_special(one: Inputs) -> Decision:
    decision = resolve(one)
    return also(ViolationCode.SIZE_INVALID, decision) if decision.tp_size.value == 3 else decision


def one_size_comes_out_wrong(one: Inputs) -> Decision:
    decision = resolve(one)
    return replace(decision, tp_size=replace(decision.tp_size, value=2)) if decision.tp_size.value == 3 else decision


def codes_in_another_order(one: Inputs) -> Decision:
    decision = resolve(one)
    return replace(decision, violations=decision.violations[::-1])


def only_the_first_code(one: Inputs) -> Decision:
    decision = resolve(one)
    return replace(decision, violations=decision.violations[:1])


def d2_ignored(one: Inputs) -> Decision:
    """Takes `autotp_size: 0` for a size even where it switches the section off."""
    if oracle(one).section_disabled:
        assert one.section is not None
        return resolve(replace(one, section=replace(one.section, tp_size=0)))
    return resolve(one)


def d2_with_a_call_too(one: Inputs) -> Decision:
    """Lets `autotp_size: 0` switch the section off beside a call."""
    if one.section is not None and one.section.autotp_size == 0 and one.section.tp_size is None:
        return replace(resolve(replace(one, section=None)), section_disabled=True)
    return resolve(one)


def zero_is_invalid(one: Inputs) -> Decision:
    """Forgets that `autotp_size` 0 is never SIZE_INVALID."""
    decision = resolve(one)
    zero = one.section is not None and one.section.autotp_size == 0 and not decision.section_disabled
    return also(ViolationCode.SIZE_INVALID, decision) if zero else decision


def pair_not_excepted(one: Inputs) -> Decision:
    """Compares the call's group with the mpu's like any other pair."""
    call_group = one.call and one.call.tp_group
    if call_group and one.mpu and call_group.identity != one.mpu.tp_group.identity:
        return also(ViolationCode.GROUP_IDENTITY_MISMATCH, resolve(one))
    return resolve(one)


def mesh_not_compared(one: Inputs) -> Decision:
    """Leaves the mesh out where something else supplies the group."""
    others = (one.call and one.call.tp_group, one.section and one.section.tp_group, one.mpu)
    return resolve(replace(one, mesh=None)) if any(others) else resolve(one)


def precision_before_section(one: Inputs) -> Decision:
    decision = resolve(one)
    if decision.dtype.source is Source.CONFIG_DTYPE and one.precision is not None:
        return replace(decision, dtype=Effective(one.precision, Source.PRECISION))
    return decision


def unset_is_fp32(one: Inputs) -> Decision:
    decision = resolve(one)
    if decision.dtype.source is Source.UNSET:
        return replace(decision, dtype=Effective(DType.FP32, Source.PRECISION))
    return decision


def alias_before_autotp_size(one: Inputs) -> Decision:
    decision = resolve(one)
    if decision.tp_size.value is not None and one.section is not None and one.section.tp_size is not None:
        return replace(decision, tp_size=replace(decision.tp_size, source=Source.CONFIG_TP_SIZE))
    return decision


def mesh_before_config_group(one: Inputs) -> Decision:
    decision = resolve(one)
    if decision.tp_group.source is Source.CONFIG_TP_GROUP and one.mesh is not None:
        return replace(decision, tp_group=Effective(one.mesh, Source.MESH_TP_GROUP))
    return decision


def size_bounded_by_the_world(one: Inputs) -> Decision:
    """Takes every size that is not above the world's, instead of those that divide it."""
    if codes_of(resolve(one)) == [ViolationCode.SIZE_NOT_DIVIDING_WORLD]:
        larger = resolve(replace(one, world_size=one.world_size * 6))
        assert larger.tp_size.value is not None
        return replace(larger, world_size=one.world_size) if larger.tp_size.value <= one.world_size else resolve(one)
    return resolve(one)


def rows_10_and_12_swapped(one: Inputs) -> Decision:
    decision = resolve(one)
    return replace(decision, row={10: 12, 12: 10}.get(decision.row, decision.row))


MUTANTS: tuple[Wrong, ...] = (
    one_size_is_special,
    one_size_comes_out_wrong,
    codes_in_another_order,
    only_the_first_code,
    d2_ignored,
    d2_with_a_call_too,
    zero_is_invalid,
    pair_not_excepted,
    mesh_not_compared,
    precision_before_section,
    unset_is_fp32,
    alias_before_autotp_size,
    mesh_before_config_group,
    size_bounded_by_the_world,
    rows_10_and_12_swapped,
)

STRIDE = 29  # prime to the length of every axis, so that it steps through all of their values


def some_cases() -> Iterator[Inputs]:
    return islice(cases(), 0, None, STRIDE)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_wrong_resolver_is_caught(mutant: Wrong) -> None:
    caught = first_disagreement(mutant, some_cases())
    assert caught is not None
    assert comparable(mutant(caught)) != oracle(caught)
    assert comparable(resolve(caught)) == oracle(caught)


def test_a_resolver_that_is_wrong_on_a_single_input_is_caught_there() -> None:
    target = next(islice(some_cases(), 3_000, None))

    def wrong_once(one: Inputs) -> Decision:
        decision = resolve(one)
        return replace(decision, section_disabled=not decision.section_disabled) if one == target else decision

    assert first_disagreement(wrong_once, some_cases()) == target


def test_the_right_resolver_is_not_caught() -> None:
    assert first_disagreement(resolve, islice(some_cases(), 5_000)) is None
