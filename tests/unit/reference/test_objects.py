"""Calls, mpus and groups as users have them, to `Inputs` and a decision (contract, section 4; D7, D8, D10)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tpinit.reference.config import read_config
from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.objects import CallArgs, GroupTable, Resolver
from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Outcome, Section, Source, ViolationCode


class ProcessGroup:
    """A group as torch has it, equal to everything, so that only `is` tells two apart."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def size(self) -> int:
        return self.ranks

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None


def mpu(**results: object) -> SimpleNamespace:
    """Return an mpu with these methods; a result that is an exception is raised."""

    def method(result: object):
        def ask() -> object:
            if isinstance(result, Exception):
                raise result
            return result

        return ask

    return SimpleNamespace(**{f"get_{name}": method(result) for name, result in results.items()})


def problems_of(resolver: Resolver | None = None, **given: object) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        (resolver or Resolver(8)).inputs(**{"call": None, **given})
    return caught.value.problems


def problem_of(**given: object) -> Problem:
    (problem,) = problems_of(**given)
    return problem


# --- groups ----------------------------------------------------------------------------------------


def group_of(value: object, table: GroupTable | None = None) -> Group:
    problems: list[Problem] = []
    group = (table or GroupTable()).group(value, "here", problems)
    assert group is not None, problems
    return group


def test_objects_are_told_apart_by_identity_and_not_by_equality():
    table, one, other = GroupTable(), ProcessGroup(2), ProcessGroup(2)
    assert one == other
    first, again, second = (group_of(value, table) for value in (one, one, other))
    assert first is again
    assert first.handle is one
    assert (first.identity, second.identity) == (0, 1)


def test_ranks_are_told_apart_by_value_and_order():
    table = GroupTable()
    assert group_of([0, 2], table) == group_of((0, 2), table) == group_of(range(0, 4, 2), table)
    assert group_of([0, 2], table).handle == (0, 2)
    assert group_of([2, 0], table).identity != group_of([0, 2], table).identity
    assert group_of([0, 2], table).size == 2


def test_an_identity_is_never_used_again():
    table = GroupTable()
    identities = [group_of(ProcessGroup(1), table).identity for _ in range(50)]  # each dies at once but for the table
    assert identities == list(range(50))


def test_the_size_is_asked_of_the_callable_then_of_the_object_then_counted():
    assert group_of(ProcessGroup(3)).size == 3
    assert group_of(ProcessGroup(3), GroupTable(lambda _: 5)).size == 5
    assert group_of(object(), GroupTable(lambda _: 5)).size == 5
    assert group_of((1, 2, 3)).size == 3
    assert group_of((1, 2, 3), GroupTable(lambda group: len(group) + 1)).size == 4


def test_the_size_is_asked_once():
    asked = []
    table = GroupTable(lambda group: asked.append(group) or 2)
    value = object()
    group_of(value, table)
    group_of(value, table)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ((), "at least 1 rank"),
        ([], "at least 1 rank"),
        ((0, 0), "twice"),
        ((-1, 0), "at least 0"),
        ((0, 1.0), "integers"),
        ((0, True), "integers"),
        (("0",), "integers"),
        ((0, 8), "ranks 0 to 7"),
        (object(), "not a process group"),
        ("world", "not a process group"),
        (-100, "not a process group"),
        (None, "not a process group"),
        ({0: 1}, "not a process group"),
        (ProcessGroup(0), "at least 1"),
        (ProcessGroup(-1), "at least 1"),
        (ProcessGroup(True), "at least 1"),
        (ProcessGroup(2.0), "at least 1"),
        (SimpleNamespace(size=4), "not a process group"),
        (torch.ones(2), "integer"),
    ],
)
def test_what_is_no_group(value, hint):
    problems: list[Problem] = []
    assert GroupTable(world_size=8).group(value, "somewhere", problems) is None
    assert problems[0].path == "somewhere"
    assert hint in problems[0].message


def test_a_size_that_raises_keeps_its_words():
    def broken(group: object) -> int:
        raise RuntimeError("store is gone")

    problems: list[Problem] = []
    assert GroupTable(broken).group(object(), "somewhere", problems) is None
    assert "store is gone" in problems[0].message
    assert isinstance(problems[0].cause, RuntimeError)


# --- the world and the call ------------------------------------------------------------------------


@pytest.mark.parametrize("world", [0, -1, True, 2.0, "2", None])
def test_a_world_is_an_integer_of_at_least_1(world):
    with pytest.raises(ConfigError, match="world_size"):
        Resolver(world)


def test_a_call_as_it_was_given():
    group = ProcessGroup(2)
    inputs = Resolver(8).inputs(call=CallArgs(2, torch.bfloat16, group))
    assert inputs == Inputs(8, Call(2, DType.BF16, Group(0, 2)))
    assert inputs.call.tp_group.handle is group
    assert Resolver(8).inputs(call=CallArgs(0, "half")).call == Call(0, DType.FP16)


@pytest.mark.parametrize("size", ["auto", None, "2", 2.0, True, [2]])
def test_a_call_always_has_a_size(size):
    problem = problem_of(call=CallArgs(size, "bf16"))
    assert problem.path == "call.tp_size"
    assert problem.fix


@pytest.mark.parametrize("dtype", ["auto", None, "BF16", torch.float64, 16])
def test_a_call_always_has_a_dtype(dtype):
    assert problem_of(call=CallArgs(2, dtype)).path == "call.dtype"


@pytest.mark.parametrize("group", ["auto", "world", -100, object(), [0, 0], [0, 9]])
def test_a_calls_group_is_a_group(group):
    assert problem_of(call=CallArgs(2, "bf16", group)).path == "call.tp_group"


def test_a_call_is_described_by_call_args():
    assert problem_of(call={"tp_size": 2}).path == "call"


# --- the mpu ---------------------------------------------------------------------------------------


def test_the_six_methods():
    tp, dp = ProcessGroup(2), ProcessGroup(4)
    user = mpu(
        model_parallel_group=tp,
        model_parallel_rank=0,
        model_parallel_world_size=2,
        data_parallel_group=dp,
        data_parallel_rank=0,
        data_parallel_world_size=4,
    )
    read = Resolver(8).inputs(call=None, mpu=user).mpu
    assert read.tp_group.handle is tp
    assert read.dp_group.handle is dp
    assert (read.tp_group.size, read.dp_group.size) == (2, 4)


def test_megatrons_names_come_first():
    tp, both = ProcessGroup(2), ProcessGroup(8)
    user = mpu(
        tensor_model_parallel_group=tp,
        tensor_model_parallel_world_size=2,
        model_parallel_group=both,
        model_parallel_world_size=8,
    )
    read = Resolver(8).inputs(call=None, mpu=user).mpu
    assert read.tp_group.handle is tp
    assert read.dp_group is None
    only = Resolver(8).inputs(call=None, mpu=mpu(tensor_model_parallel_group=(0, 1)))
    assert only.mpu.tp_group.handle == (0, 1)


def test_a_module_is_an_mpu_too():
    import types

    module = types.ModuleType("parallel_state")
    module.get_model_parallel_group = lambda: (0, 1)
    assert Resolver(2).inputs(call=None, mpu=module).mpu.tp_group.size == 2


def test_an_mpu_without_a_data_parallel_group():
    assert (
        Resolver(8).inputs(call=None, mpu=mpu(model_parallel_group=(0, 1), data_parallel_group=None)).mpu.dp_group
        is None
    )


@pytest.mark.parametrize(
    "user",
    [object(), "mpu", 2, (0, 1), mpu(data_parallel_group=(0,)), SimpleNamespace(get_model_parallel_group=(0, 1))],
)
def test_an_mpu_with_neither_name(user):
    problem = problem_of(mpu=user)
    assert problem.path == "mpu"
    assert "get_model_parallel_group()" in problem.message


@pytest.mark.parametrize(
    ("results", "path", "hint"),
    [
        ({"model_parallel_group": None}, "mpu.get_model_parallel_group()", "initialise"),
        ({"model_parallel_group": "x"}, "mpu.get_model_parallel_group()", "give a process group"),
        ({"model_parallel_group": (0, 0)}, "mpu.get_model_parallel_group()", "once"),
        ({"tensor_model_parallel_group": (9,)}, "mpu.get_tensor_model_parallel_group()", "once"),
        ({"model_parallel_group": AssertionError("not initialised")}, "mpu.get_model_parallel_group()", "initialise"),
        (
            {"model_parallel_group": (0, 1), "data_parallel_group": RuntimeError("x")},
            "mpu.get_data_parallel_group()",
            "initialise",
        ),
        (
            {"model_parallel_group": (0, 1), "model_parallel_world_size": ValueError("x")},
            "mpu.get_model_parallel_world_size()",
            "initialise",
        ),
    ],
)
def test_an_mpu_whose_groups_are_none(results, path, hint):
    problem = problem_of(mpu=mpu(**results))
    assert problem.path == path
    assert hint in problem.fix


def test_what_an_mpu_raises_is_the_cause():
    cause = AssertionError("model parallel group is not initialized")
    with pytest.raises(ConfigError, match="model parallel group is not initialized") as caught:
        Resolver(8).inputs(call=None, mpu=mpu(model_parallel_group=cause))
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("size", [4, True, 2.0, "2", None])
@pytest.mark.parametrize("family", ["model_parallel", "tensor_model_parallel", "data_parallel"])
def test_an_mpu_whose_size_is_not_its_groups_is_malformed(family, size):
    results = {"model_parallel_group": (0, 1), f"{family}_group": (0, 1), f"{family}_world_size": size}
    problem = problem_of(mpu=mpu(**results))
    assert problem.path == f"mpu.get_{family}_world_size()"
    assert "2 ranks" in problem.message
    assert problem.given in problem.message


# --- all together ----------------------------------------------------------------------------------


def test_all_problems_are_raised_together():
    paths = [
        problem.path
        for problem in problems_of(
            call=CallArgs("2", "auto"),
            config={"tensor_parallel": {"autotp_size": True}, "bf16": {"enabled": 1}},
            mpu=object(),
            mesh_group="tp",
        )
    ]
    assert paths == [
        "bf16.enabled",
        "call.dtype",
        "call.tp_size",
        "mesh.tp_group",
        "mpu",
        "tensor_parallel.autotp_size",
    ]


def test_one_object_in_several_places_is_one_group():
    group = ProcessGroup(2)
    inputs = Resolver(4).inputs(
        call=CallArgs(2, "bf16"),
        config={"tensor_parallel": {"tp": {"tp_group": group}}},
        mpu=mpu(model_parallel_group=group),
        mesh_group=group,
    )
    assert inputs.section.tp_group is inputs.mpu.tp_group is inputs.mesh


def test_two_equal_objects_are_two_groups():
    decision = Resolver(4).resolve(
        call=None,
        config={"tensor_parallel": {"autotp_size": 2}},
        mpu=mpu(model_parallel_group=ProcessGroup(2)),
        mesh_group=ProcessGroup(2),
    )
    assert [violation.code for violation in decision.violations] == [ViolationCode.GROUP_IDENTITY_MISMATCH]


def test_the_decision_gives_the_users_objects_back():
    tp, dp = ProcessGroup(2), ProcessGroup(2)
    decision = Resolver(4).resolve(
        call=CallArgs(2, torch.bfloat16),
        config={"tensor_parallel": {"autotp_size": 2, "tp_overlap_comm": True}},
        mpu=mpu(model_parallel_group=tp, data_parallel_group=dp),
    )
    assert (decision.row, decision.outcome) == (8, Outcome.INIT_FROM_CONFIG)
    assert decision.tp_group.value.handle is tp
    assert decision.tp_group.source is Source.MPU_TP_GROUP
    assert decision.dp_group.handle is dp
    assert decision.carried == {"tp_overlap_comm": True}


def test_a_reading_is_a_config_and_its_group_is_read_anew():
    group = ProcessGroup(2)
    config = {"tensor_parallel": {"autotp_size": 2, "tp": {"tp_group": group}}}
    reading = read_config(config)
    resolver = Resolver(4)
    resolver.groups.group(ProcessGroup(3), "another", [])  # takes identity 0, which the reading gave to `group`
    decision = resolver.resolve(call=CallArgs(2, "bf16", group), config=reading)
    assert (decision.row, decision.violations) == (11, ())
    assert Resolver(4).inputs(call=None, config=read_config({"tensor_parallel": {}})).section == Section()


def test_a_repeated_size_must_agree_with_the_call():
    config = {"tensor_parallel": {"partition_config": {"tp_size": 2}}}
    assert Resolver(4).inputs(call=CallArgs(2, "bf16"), config=config).section.autotp_size is None
    problem = problem_of(call=CallArgs(4, "bf16"), config=config)
    assert "tp_size in tp_model_init = 4" in problem.message


@pytest.mark.parametrize(
    ("row", "given"),
    [
        (1, {}),
        (2, {"mpu": mpu(model_parallel_group=(0, 1))}),
        (3, {"config": {"tensor_parallel": {"autotp_size": 2}}}),
        (4, {"config": {"tensor_parallel": {"autotp_size": 2}}, "mpu": mpu(model_parallel_group=(0, 1))}),
        (5, {"call": CallArgs(2, "bf16")}),
        (6, {"call": CallArgs(2, "bf16"), "mpu": mpu(model_parallel_group=(0, 1))}),
        (7, {"call": CallArgs(2, "bf16"), "config": {"tensor_parallel": {}}}),
        (8, {"call": CallArgs(2, "bf16"), "config": {"tensor_parallel": {}}, "mpu": mpu(model_parallel_group=(0, 1))}),
        (9, {"call": CallArgs(2, "bf16", (0, 1))}),
        (10, {"call": CallArgs(2, "bf16", (0, 1)), "mpu": mpu(model_parallel_group=(0, 1))}),
        (11, {"call": CallArgs(2, "bf16", (0, 1)), "config": {"tensor_parallel": {}}}),
        (
            12,
            {
                "call": CallArgs(2, "bf16", (0, 1)),
                "config": {"tensor_parallel": {}},
                "mpu": mpu(model_parallel_group=(0, 1)),
            },
        ),
    ],
)
def test_every_row_from_users_objects(row, given):
    decision = Resolver(4).resolve(**{"call": None, **given})
    assert decision.row == row
    assert (decision.outcome is Outcome.ERROR) is (row in (1, 5, 10, 12))
