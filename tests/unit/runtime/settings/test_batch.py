"""Batch sizes: each follows from the two others over data-parallel ranks, and both countings are said (D16)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tpinit.reference.errors import ConfigError, Problem
from tpinit.runtime.settings import BatchSizes, Settings, read_settings
from tpinit.runtime.settings.batch import BATCH_KEYS

TRAIN, MICRO, STEPS = BATCH_KEYS
sizes = st.integers(1, 20)


def settings_of(config: dict[str, Any], dp_size: int = 1, world: int | None = None) -> Settings:
    return read_settings(config, dp_size, None, world)


def problem_of(config: dict[str, Any], dp_size: int = 1, world: int | None = None) -> Problem:
    with pytest.raises(ConfigError) as caught:
        settings_of(config, dp_size, world)
    (problem,) = caught.value.problems
    return problem


@given(
    micro=sizes, steps=sizes, dp=sizes, left_out=st.sampled_from([None, *BATCH_KEYS]), how=st.sampled_from(["", "auto"])
)
def test_any_size_follows_from_the_two_others(micro: int, steps: int, dp: int, left_out: str | None, how: str) -> None:
    config: dict[str, Any] = {TRAIN: micro * steps * dp, MICRO: micro, STEPS: steps}
    if left_out is not None:
        config[left_out] = how or None
    settings = settings_of(config, dp)
    assert settings.batch == BatchSizes(micro * steps * dp, micro, steps)
    assert settings.notes == ()


@given(train=sizes, micro=sizes, steps=sizes, dp=sizes)
def test_three_sizes_that_do_not_multiply_up_are_an_error_with_the_equation(
    train: int, micro: int, steps: int, dp: int
) -> None:
    product = micro * steps * dp
    if train == product:
        return
    problem = problem_of({TRAIN: train, MICRO: micro, STEPS: steps}, dp)
    assert f"{micro} x {steps} x {dp} = {product}, not {train}" in problem.message
    assert f"write train_batch_size {product}" in problem.fix


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({TRAIN: 7, MICRO: 2}, "7 / (2 x 3) is not a whole number"),
        ({TRAIN: 7, STEPS: 2}, "7 / (2 x 3) is not a whole number"),
        ({TRAIN: 7}, "7 / (1 x 3) is not a whole number"),
        ({TRAIN: 2, MICRO: 1}, "2 / (1 x 3) is not a whole number"),
    ],
)
def test_a_size_that_would_be_a_fraction_is_an_error(config: dict[str, Any], words: str) -> None:
    assert words in problem_of(config, 3).message


@given(micro=sizes, steps=sizes, dp=sizes, tp=st.integers(2, 8))
def test_a_triple_that_fits_the_world_only_is_an_error_with_both_countings(
    micro: int, steps: int, dp: int, tp: int
) -> None:
    world = dp * tp
    problem = problem_of({TRAIN: micro * steps * world, MICRO: micro, STEPS: steps}, dp, world)
    assert "D16" in problem.message
    assert f"{micro} x {steps} x {dp} = {micro * steps * dp}, not {micro * steps * world}" in problem.message
    assert f"counts all {world} ranks: {micro} x {steps} x {world} = {micro * steps * world}" in problem.message


@given(micro=sizes, steps=sizes, dp=sizes, tp=st.integers(2, 8))
def test_an_accumulation_that_follows_otherwise_in_deepspeed_is_said_with_both_countings(
    micro: int, steps: int, dp: int, tp: int
) -> None:
    """OpenRLHF's config: it gives train_batch_size = micro x accumulation x world, and micro."""
    world = dp * tp
    settings = settings_of({TRAIN: micro * steps * world, MICRO: micro}, dp, world)
    assert settings.batch.accumulation == steps * tp
    (note,) = settings.notes
    assert note.changes_training
    assert f"= {micro} x {steps * tp} x {dp} over data-parallel ranks (D16)" in note.text
    assert f"counts all {world} ranks: {micro * steps * world} = {micro} x {steps} x {world}" in note.text
    assert f"write train_batch_size {micro * steps * dp}" in note.text
    # The advice gives DeepSpeed's accumulation.
    assert settings_of({TRAIN: micro * steps * dp, MICRO: micro}, dp, world).batch.accumulation == steps


def test_a_micro_batch_that_follows_otherwise_is_said() -> None:
    (note,) = settings_of({TRAIN: 8, STEPS: 2}, 1, 2).notes
    assert "8 = 4 x 2 x 1" in note.text
    assert "8 = 2 x 2 x 2" in note.text


def test_a_size_that_deepspeed_could_not_derive_is_said() -> None:
    (note,) = settings_of({TRAIN: 3, MICRO: 1}, 1, 2).notes
    assert note.text.endswith("they would not multiply up")


def test_a_number_of_samples_that_no_update_depends_on_is_only_information() -> None:
    (note,) = settings_of({MICRO: 1, STEPS: 2}, 1, 2).notes
    assert not note.changes_training


@pytest.mark.parametrize("given_sizes", [{TRAIN: 4, MICRO: 1, STEPS: 2}, {TRAIN: 4, MICRO: 1}, {MICRO: 1}])
def test_nothing_is_said_where_both_count_alike(given_sizes: dict[str, Any]) -> None:
    assert settings_of(given_sizes, 2, 2).notes == ()
    assert settings_of(given_sizes, 2).notes == ()  # with an mpu


@pytest.mark.parametrize(
    ("config", "unresolved"),
    [
        ({TRAIN: "auto", MICRO: "auto", STEPS: "auto"}, [STEPS, TRAIN, MICRO]),
        ({MICRO: "auto"}, [MICRO]),
        ({STEPS: "auto"}, [STEPS]),
        ({MICRO: 2, STEPS: "auto"}, [STEPS]),
        ({TRAIN: "auto", MICRO: 2, STEPS: "auto"}, [STEPS, TRAIN]),
        ({TRAIN: 4, MICRO: "auto", STEPS: "auto"}, [STEPS, MICRO]),
        ({TRAIN: 4, MICRO: "auto"}, []),
        ({TRAIN: "auto", MICRO: 2}, []),
        ({TRAIN: 4, MICRO: 2, STEPS: "auto"}, []),
    ],
)
def test_an_auto_that_follows_from_nothing_names_the_callers(config: dict[str, Any], unresolved: list[str]) -> None:
    if not unresolved:
        settings_of(config)
        return
    with pytest.raises(ConfigError) as caught:
        settings_of(config)
    assert [problem.path for problem in caught.value.problems] == unresolved
    assert all("Trainer and accelerate" in problem.message for problem in caught.value.problems)


@pytest.mark.parametrize("value", [0, -1, 1.0, "2", True])
def test_a_size_is_a_positive_integer(value: Any) -> None:
    assert problem_of({MICRO: value}).path == MICRO
