"""Integers that compare and convert as they like: their own value is read, and a plain int goes on (D7)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tpinit.reference.errors import ConfigError
from tpinit.reference.groups import GroupTable
from tpinit.reference.mpu import read_mpu
from tpinit.reference.objects import CallArgs, Resolver
from tpinit.reference.spellings import plain_int
from tpinit.spec.vocabulary import Outcome, ViolationCode


class Sly(int):
    """Equal to everything, less than nothing, a multiple of everything, and another number when converted."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __lt__(self, other: object) -> bool:
        return False

    def __ge__(self, other: object) -> bool:
        return True

    def __rmod__(self, other: object) -> int:
        return 0

    def __int__(self) -> int:
        return 7

    def __index__(self) -> int:
        return 7

    __hash__ = int.__hash__


def config(size: object) -> dict[str, object]:
    return {"tensor_parallel": {"autotp_size": size}}


@pytest.mark.parametrize(
    ("value", "plain"), [(3, 3), (Sly(3), 3), (Sly(-1), -1), (True, None), (2.0, None), ("3", None)]
)
def test_an_integer_is_read_by_its_own_value(value: object, plain: int | None) -> None:
    assert plain_int(value) == plain
    assert type(plain_int(value)) in (int, type(None))


def test_sizes_of_config_call_and_world_are_plain_where_they_are_decided_on() -> None:
    resolver = Resolver(Sly(4))  # type: ignore[arg-type]  # an int, as far as a caller sees
    inputs = resolver.inputs(call=CallArgs(Sly(3), "bf16"), config=config(Sly(2)))
    assert inputs.section is not None
    assert inputs.call is not None
    read = (inputs.world_size, inputs.section.autotp_size, inputs.call.tp_size)
    assert [(type(one), one) for one in read] == [(int, 4), (int, 2), (int, 3)]
    decision = resolver.resolve(call=CallArgs(Sly(3), "bf16"), config=config(Sly(2)))
    assert decision.outcome is Outcome.ERROR
    assert ViolationCode.SIZE_MISMATCH in {violation.code for violation in decision.violations}


def test_a_size_that_does_not_divide_the_world_is_found() -> None:
    decision = Resolver(5).resolve(call=None, config=config(Sly(3)))
    assert [violation.code for violation in decision.violations] == [ViolationCode.SIZE_NOT_DIVIDING_WORLD]


@pytest.mark.parametrize("world", [Sly(0), Sly(-3)])
def test_a_world_without_ranks_is_refused(world: int) -> None:
    with pytest.raises(ConfigError, match="an integer of at least 1"):
        Resolver(world)


def test_groups_and_mpus_are_read_by_the_own_values_of_their_sizes() -> None:
    problems: list[object] = []
    empty = GroupTable(group_size=lambda _: Sly(0))
    assert empty.group(object(), "here", problems) is None  # type: ignore[arg-type]  # only counted
    table = GroupTable(world_size=4)
    listed = table.group([Sly(0), Sly(2)], "here", problems)  # type: ignore[arg-type]  # only counted
    assert listed is not None
    assert listed.handle == (0, 2)
    assert [type(rank) for rank in listed.handle] == [int, int]
    assert len(problems) == 1
    mpu = SimpleNamespace(
        get_tensor_model_parallel_group=lambda: [0, 1], get_tensor_model_parallel_world_size=lambda: Sly(3)
    )
    read_mpu(mpu, table, problems)  # type: ignore[arg-type]  # only counted
    assert "the mpu reports the size 3, but its group has 2 ranks" in str(problems[1:])
