"""What the strategies reach, asserted; and that the assertion fails for strategies that do not."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from tpinit.conformance.domain import EVERY_FEATURE, Shape, cases, features, shape
from tpinit.conformance.oracle import oracle
from tpinit.conformance.strategies import (
    inputs,
    inputs_in_row,
    inputs_succeeding,
    inputs_violating,
    malformed_configs,
    reached,
    spellings_of,
)
from tpinit.spec.vocabulary import DType, Inputs, Outcome, ViolationCode

HUGE = 2**64
ROW_NUMBERS = range(1, 13)
SUCCEEDING = (2, 3, 4, 6, 7, 8, 9, 11)


def shapes_of(given_inputs: Inputs) -> list[Shape]:
    return [shape(oracle(given_inputs))]


def missing(strategy: st.SearchStrategy[Inputs]) -> frozenset[str]:
    return EVERY_FEATURE - features(reached(strategy, shapes_of))


def test_inputs_reaches_every_row_violation_alone_and_source() -> None:
    assert not missing(inputs())


def huge(given_inputs: Inputs) -> Iterable[str]:
    """Which numbers of this input no machine word holds, in inputs that succeed."""
    verdict = oracle(given_inputs)
    if verdict.outcome is Outcome.ERROR:
        return
    if given_inputs.world_size > HUGE:
        yield "world_size"
    if verdict.tp_size.value is not None and verdict.tp_size.value > HUGE:
        yield "tp_size"
    if verdict.tp_group.value is not None and verdict.tp_group.value.identity > HUGE:
        yield "identity"
    if given_inputs.section is not None and given_inputs.mesh is not None:
        yield "section and mesh"


def test_inputs_reaches_numbers_without_bound() -> None:
    assert reached(inputs(), huge, 800) == {"world_size", "tp_size", "identity", "section and mesh"}


@pytest.mark.parametrize("number", ROW_NUMBERS)
def test_inputs_in_row_stay_in_their_row_and_show_both_outcomes(number: int) -> None:
    seen = reached(inputs_in_row(number), shapes_of, 60)
    assert {row for row, *_ in seen} == {number}
    has_success = any(not codes for _, codes, *_ in seen)
    assert has_success == (number in SUCCEEDING)
    # Row 2 is out of scope of every violation, and row 1 of every one but its own.
    assert any(codes for _, codes, *_ in seen) == (number != 2)


@pytest.fixture(scope="module")
def rows_alone() -> dict[ViolationCode, set[int]]:
    """Where each violation holds alone, from the oracle on the small domain: not from the strategy's own list."""
    rows: dict[ViolationCode, set[int]] = {code: set() for code in ViolationCode}
    for index, one in enumerate(cases()):
        if index % 11 == 0 and len(codes := oracle(one).codes) == 1:
            rows[codes[0]].add(oracle(one).row)
    return rows


@pytest.mark.parametrize("code", ViolationCode)
def test_inputs_violating_hold_exactly_that_violation_in_every_row_where_it_can_be_alone(
    code: ViolationCode, rows_alone: dict[ViolationCode, set[int]]
) -> None:
    seen = reached(inputs_violating(code), shapes_of, 150)
    assert {codes for _, codes, *_ in seen} == {(code,)}
    assert {row for row, *_ in seen} == rows_alone[code]


def test_inputs_succeeding_reach_every_row_that_can() -> None:
    seen = reached(inputs_succeeding(), shapes_of, 200)
    assert {row for row, *_ in seen} == set(SUCCEEDING)
    assert not any(codes for _, codes, *_ in seen)


def test_rows_that_do_not_exist_or_never_succeed_are_refused() -> None:
    with pytest.raises(ValueError, match="no row 13"):
        reached(inputs_in_row(13), shapes_of, 1)
    with pytest.raises(ValueError, match="row 5 never succeeds"):
        reached(inputs_succeeding(5), shapes_of, 1)
    with pytest.raises(ValueError, match="a config can't express precision fp32"):
        reached(spellings_of(None, DType.FP32), lambda one: [len(one)], 1)


DEFECTS = {
    *(
        f"tensor_parallel.{key}"
        for key in ("autotp_size", "dtype", "preset_model", "partition_config", "kernel_inject")
    ),
    *(f"tensor_parallel.{key}" for key in ("tp_overlap_comm", "keep_module_on_host", "vocab_parallel_lm_head")),
    *(f"tensor_parallel.{key}" for key in ("vocab_parallel_ce_backend", "injection_policy_tuple")),
    *(f"tensor_parallel.tp.{key}" for key in ("tp_size", "tp_grain_size", "mpu")),
    *("tensor_parallel", "tensor_parallel.tp"),
    *("bf16", "fp16", "bf16.enabled", "fp16.enabled"),
}


def test_malformed_configs_reach_a_defect_at_every_place() -> None:
    places = reached(
        malformed_configs(),
        lambda one: [one.path.replace("tensor_parallel.tensor_parallel", "tensor_parallel.tp")],
        800,
    )
    assert places >= DEFECTS
    assert any(place.startswith("tensor_parallel.my_") for place in places)  # an unknown key


# --- negative controls: a strategy with a hole is found out ------------------------------------------


def without_row_6() -> st.SearchStrategy[Inputs]:
    return inputs().map(lambda one: replace(one, mpu=None) if oracle(one).row == 6 else one)


def without_disabled_sections() -> st.SearchStrategy[Inputs]:
    return inputs().map(
        lambda one: (
            Inputs(one.world_size, one.call, None, one.precision, one.mpu, one.mesh)
            if oracle(one).section_disabled
            else one
        )
    )


def without_identity_mismatch() -> st.SearchStrategy[Inputs]:
    one_code = ViolationCode.GROUP_IDENTITY_MISMATCH
    return inputs().flatmap(
        lambda one: inputs_violating(ViolationCode.DTYPE_MISMATCH) if oracle(one).codes == (one_code,) else st.just(one)
    )


@pytest.mark.parametrize(
    ("strategy", "hole"),
    [
        (without_row_6(), {"row 6"}),
        (without_disabled_sections(), {"section disabled"}),
        (without_identity_mismatch(), {"GROUP_IDENTITY_MISMATCH alone"}),
        (inputs_succeeding(), {f"row {number}" for number in (1, 5, 10, 12)} | {"several violations"}),
        (st.sampled_from([Inputs(2)]), EVERY_FEATURE - {"row 1", "NO_TP_INTENT alone"}),
    ],
    ids=["row 6", "D2", "one code", "errors", "nearly everything"],
)
def test_a_strategy_with_a_hole_is_found_out(strategy: st.SearchStrategy[Inputs], hole: set[str]) -> None:
    found = missing(strategy)
    assert found >= hole
    if len(hole) == 1:
        assert found == hole
