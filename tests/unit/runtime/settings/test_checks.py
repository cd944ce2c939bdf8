"""The checks of a run, from the section `tpinit` of the config and from the keywords of `initialize`."""

from __future__ import annotations

from typing import Any

import pytest
from tpinit.reference.errors import ConfigError
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.settings import Checks, read_checks, read_settings


def test_the_config_says_how_often_and_is_silent_about_the_rest() -> None:
    given = Checks(replicas_every=7)
    assert read_checks({"tpinit": {"check_inputs_every": 0}}, given) == Checks(0, 7)
    assert read_checks({"tpinit": {"on_nonfinite": "skip", "check_inputs_every": "auto"}}, given) == Checks(
        1, 7, "skip"
    )
    for config in ({}, {"tpinit": None}, {"tpinit": {}}):
        assert read_checks(config, given) == given


def test_equal_values_in_both_places_are_one_and_others_an_error() -> None:
    assert read_checks({"tpinit": {"check_inputs_every": 5}}, Checks(5)) == Checks(5)
    with pytest.raises(ConfigError, match=r"tpinit\.check_inputs_every = 5: .*check_inputs_every=3"):
        read_checks({"tpinit": {"check_inputs_every": 5}}, Checks(3))


@pytest.mark.parametrize(
    ("key", "value"),
    [("check_inputs_every", -1), ("check_inputs_every", True), ("check_replicas_every", 1.5), ("on_nonfinite", "stop")],
)
def test_a_value_that_is_not_legal_is_an_error_with_its_path(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"tpinit\.{key} = "):
        read_checks({"tpinit": {key: value}}, Checks())


def test_unknown_keys_of_the_section_are_refused() -> None:
    read_settings({"tpinit": {"check_inputs_every": 3, "_why": "slow inputs"}}, 1, None)
    with pytest.raises(UnsupportedError, match=r"did you mean tpinit\.check_inputs_every"):
        read_settings({"tpinit": {"check_input_every": 3}}, 1, None)
    with pytest.raises(ConfigError, match="this must be an object"):
        read_settings({"tpinit": 3}, 1, None)
