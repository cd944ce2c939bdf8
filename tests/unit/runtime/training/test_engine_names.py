"""A name of DeepSpeed's engine that this engine lacks is refused with what to do instead."""

from __future__ import annotations

import pytest
from tpinit.reference.errors import TpinitError
from tpinit.runtime import Engine, MissingCallError
from tpinit.runtime.training.engine_names import NOT_ON_THE_ENGINE


def engine() -> Engine:
    return Engine.__new__(Engine)


@pytest.mark.parametrize("name", sorted(NOT_ON_THE_ENGINE))
def test_a_name_of_deepspeed_is_refused_by_name(name: str) -> None:
    assert not hasattr(Engine, name), "the engine has it now: take it from the table"
    assert not hasattr(engine(), name)
    with pytest.raises(MissingCallError, match=f"the engine has no {name}: ") as caught:
        getattr(engine(), name)
    assert isinstance(caught.value, TpinitError)
    assert "{" not in str(caught.value)


def test_a_misspelt_name_is_a_plain_attribute_error_with_the_nearest_one() -> None:
    with pytest.raises(AttributeError, match="did you mean backward") as caught:
        engine().bakcward  # noqa: B018
    assert not isinstance(caught.value, TpinitError)
