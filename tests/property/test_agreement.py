"""The resolver, the oracle and the Z3 model on the same inputs, sizes and groups without bound."""

import pytest
from hypothesis import event, example, given, settings
from tpinit.conformance.oracle import comparable, oracle
from tpinit.conformance.strategies import inputs, inputs_violating
from tpinit.reference.resolver import resolve
from tpinit.spec.concrete import evaluate
from tpinit.spec.vocabulary import (
    Call,
    Decision,
    DType,
    Given,
    Group,
    Inputs,
    Mpu,
    Outcome,
    Section,
    Source,
    ViolationCode,
)

HUGE = 10**30
BIG = Group(HUGE, HUGE)

anything = inputs()


@settings(max_examples=700)
@given(anything)
@example(Inputs(1))
@example(Inputs(HUGE * 3, section=Section(autotp_size=HUGE)))
@example(Inputs(HUGE * 3 + 1, section=Section(autotp_size=HUGE)))
@example(Inputs(4, Call(HUGE, DType.FP32, BIG), Section(tp_size=HUGE), None, None, BIG))
def test_resolver_equals_oracle(one: Inputs) -> None:
    event(f"row {oracle(one).row}")
    assert comparable(resolve(one)) == oracle(one)


@settings(max_examples=300)
@given(anything)
@example(Inputs(1, section=Section(autotp_size=0)))
@example(Inputs(8, section=Section(0, None, DType.FP16, Group(2, 3)), mpu=Mpu(Group(1, 2)), precision=DType.BF16))
@example(Inputs(HUGE * 3 + 1, section=Section(autotp_size=HUGE)))
def test_resolver_equals_the_z3_model(one: Inputs) -> None:
    assert comparable(evaluate(one)) == comparable(resolve(one))


@pytest.mark.parametrize("code", ViolationCode)
def test_resolver_equals_the_z3_model_on_every_violation_alone(code: ViolationCode) -> None:
    @settings(max_examples=10)
    @given(inputs_violating(code))
    def check(one: Inputs) -> None:
        assert [violation.code for violation in evaluate(one).violations] == [code]
        assert comparable(evaluate(one)) == comparable(resolve(one))

    check()


# --- what the contract says of every decision, whoever makes it ---------------------------------------


def given_values(one: Inputs) -> dict[Source, object]:
    """Every value of an input by its path, absent ones left out; a disabled section's too."""
    values: dict[Source, object] = {
        Source.CALL_TP_SIZE: one.call and one.call.tp_size,
        Source.CALL_DTYPE: one.call and one.call.dtype,
        Source.CALL_TP_GROUP: one.call and one.call.tp_group,
        Source.CONFIG_AUTOTP_SIZE: one.section and one.section.autotp_size,
        Source.CONFIG_TP_SIZE: one.section and one.section.tp_size,
        Source.CONFIG_DTYPE: one.section and one.section.dtype,
        Source.CONFIG_TP_GROUP: one.section and one.section.tp_group,
        Source.PRECISION: one.precision,
        Source.MPU_TP_GROUP: one.mpu and one.mpu.tp_group,
        Source.MESH_TP_GROUP: one.mesh,
        Source.WORLD_SIZE: one.world_size,
    }
    return {source: value for source, value in values.items() if value is not None}


@given(anything)
def test_every_source_holds_the_value_it_is_named_for(one: Inputs) -> None:
    decision, values = resolve(one), given_values(one)
    for effective in (decision.tp_size, decision.dtype, decision.tp_group):
        if effective.value is not None:
            assert effective.source is not None
            assert values[effective.source] == effective.value
        else:
            assert effective.source in (None, Source.UNSET, Source.CREATED)


@given(anything)
def test_the_evidence_of_a_violation_is_what_was_given(one: Inputs) -> None:
    values = given_values(one)
    for violation in resolve(one).violations:
        for evidence in violation.given:
            assert isinstance(evidence, Given)
            assert values[evidence.source] == evidence.value
        if violation.code in (ViolationCode.SIZE_MISMATCH, ViolationCode.DTYPE_MISMATCH):
            assert len({evidence.value for evidence in violation.given}) > 1


@given(anything)
def test_success_ignores_nothing_and_is_safe(one: Inputs) -> None:
    """Section 6, items 4 and 5."""
    decision, values = resolve(one), given_values(one)
    if decision.outcome not in (Outcome.INIT_FROM_CALL, Outcome.INIT_FROM_CONFIG):
        return
    size, group = decision.tp_size.value, decision.tp_group.value
    assert size is not None
    assert size >= 1
    kinds = {int: size, DType: decision.dtype.value, Group: group}
    for source, value in values.items():
        if source is not Source.WORLD_SIZE:
            assert value == next(held for kind, held in kinds.items() if isinstance(value, kind))
    if group is None:
        assert decision.tp_group.source is Source.CREATED
        assert one.world_size % size == 0
    else:
        assert group.size == size
    assert not (Source.CALL_TP_GROUP in values and one.mpu is not None)


@given(anything)
def test_an_error_has_no_effective_values_and_anything_else_no_violation(one: Inputs) -> None:
    decision = resolve(one)
    assert (decision.outcome is Outcome.ERROR) == bool(decision.violations)
    if decision.violations:
        empty = Decision(decision.row, Outcome.ERROR)
        assert (decision.tp_size, decision.dtype, decision.tp_group) == (empty.tp_size, empty.dtype, empty.tp_group)
    codes = [violation.code for violation in decision.violations]
    assert codes == [code for code in ViolationCode if code in codes]


@given(anything)
def test_what_is_only_carried_reaches_a_successful_decision(one: Inputs) -> None:
    decision = resolve(one)
    if decision.outcome is Outcome.ERROR:
        return
    assert decision.world_size == one.world_size
    assert decision.dp_group == (one.mpu and one.mpu.dp_group)
    if one.section is not None and not decision.section_disabled:
        assert decision.carried == one.section.carried
