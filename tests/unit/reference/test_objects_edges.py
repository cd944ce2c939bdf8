"""What users hand over, at the edges that mutants of the readers found open."""

from types import SimpleNamespace

import pytest
from tpinit.reference.config import ConfigReading
from tpinit.reference.errors import ConfigError
from tpinit.reference.groups import GroupTable
from tpinit.reference.mpu import read_mpu
from tpinit.reference.objects import CallArgs, Resolver


class EqualToAll:
    def __eq__(self, other):
        return True

    __hash__ = None

    def size(self):
        return 2


class UnaskableSize:
    @property
    def size(self):
        raise RuntimeError("not to be asked")


def paths_of(**given):
    with pytest.raises(ConfigError) as caught:
        Resolver(4).inputs(**{"call": None, **given})
    return [problem.path for problem in caught.value.problems]


@pytest.mark.parametrize("value", ["tp", b"tp", -100, True, 2.5, {"ranks": [0, 1]}], ids=repr)
def test_a_plain_value_is_no_group_and_no_library_is_asked_about_it(value):
    asked, problems = [], []
    table = GroupTable(group_size=lambda group: asked.append(group) or 2)
    assert table.group(value, "here", problems) is None
    assert [problem.path for problem in problems] == ["here"]
    assert asked == []


@pytest.mark.parametrize("ranks_first", [True, False])
def test_an_object_that_equals_a_list_of_ranks_is_not_that_group(ranks_first):
    table, problems = GroupTable(), []
    given = [[0, 1], EqualToAll()] if ranks_first else [EqualToAll(), [0, 1]]
    one, other = (table.group(value, "here", problems) for value in given)
    assert problems == []
    assert one.identity != other.identity


def test_a_library_that_knows_the_size_is_asked_instead_of_the_object():
    problems = []
    assert GroupTable(group_size=lambda _: 3).group(UnaskableSize(), "here", problems).size == 3
    assert problems == []


def test_an_mpu_with_a_bad_group_is_no_mpu():
    problems = []
    bad = SimpleNamespace(
        get_model_parallel_group=lambda: "no group",
        get_model_parallel_world_size=lambda: 2,
        get_data_parallel_group=lambda: [0, 1],
    )
    assert read_mpu(bad, GroupTable(), problems) is None
    assert [problem.path for problem in problems] == ["mpu.get_model_parallel_group()"]


def test_an_mpus_size_is_no_truth():
    mpu = SimpleNamespace(get_model_parallel_group=lambda: [0], get_model_parallel_world_size=lambda: True)
    assert paths_of(mpu=mpu) == ["mpu.get_model_parallel_world_size()"]


def test_a_world_of_one_rank():
    assert Resolver(1).inputs(call=None).world_size == 1


def test_an_empty_reading_is_a_config():
    assert Resolver(4).inputs(call=None, config=ConfigReading()).section is None


REPEATED = {"tensor_parallel": {"partition_config": {"tp_size": 2}}}


@pytest.mark.parametrize(
    ("call", "path"),
    [(CallArgs("4", "bf16"), "call.tp_size"), (CallArgs(4, "brain"), "call.dtype")],
)
def test_a_call_that_can_not_be_read_is_compared_with_nothing(call, path):
    assert paths_of(call=call, config=REPEATED) == [path]


def test_a_reading_can_be_a_key():
    assert hash(ConfigReading(config={"a": 1})) == hash(ConfigReading(config={"b": 2}))


class Count(int):
    """A size of another type of integer."""


@pytest.mark.parametrize("family", ["model_parallel", "tensor_model_parallel", "data_parallel"])
def test_an_mpu_may_report_its_size_as_any_integer(family):
    results = {"get_model_parallel_group": (0, 1), f"get_{family}_group": (0, 1), f"get_{family}_world_size": Count(2)}
    mpu = SimpleNamespace(**{name: lambda result=result: result for name, result in results.items()})
    assert Resolver(8).inputs(call=None, mpu=mpu).mpu is not None


class Word(str):
    """A text of another type."""


@pytest.mark.parametrize("group", ["tp", Word("tp")])
def test_a_name_is_no_group_of_a_call(group):
    with pytest.raises(ConfigError) as caught:
        Resolver(4).inputs(call=CallArgs(2, "fp32", group))
    assert [(one.path, one.fix) for one in caught.value.problems] == [
        ("call.tp_group", "give a group, or leave it out")
    ]
