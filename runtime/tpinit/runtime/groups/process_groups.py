"""The process groups of a run: the TP group, which shards, and the DP group, which averages gradients.

The decision names the source of the TP group. The groups of all ranks, as lists of ranks, are gathered before any
group is created, so that every rank raises the same error, with the same text.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroup
from tpinit.reference.errors import TpinitError
from tpinit.runtime.errors import AgreementError, GroupError
from tpinit.runtime.groups import topology
from tpinit.runtime.groups.communicators import try_group
from tpinit.runtime.groups.devices import backends, message_device
from tpinit.runtime.groups.issuing import collective, recorded
from tpinit.runtime.internals.torch_private import local_gloo_group, timeout_of
from tpinit.spec.vocabulary import Decision, Source

__all__ = [
    "GroupLayout",
    "ParallelGroups",
    "GroupView",
    "control_groups",
    "free_groups",
    "group_size",
    "plan_groups",
    "create_groups",
    "ranks_of",
    "world_timeout",
]

Ranks = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupView:
    """One group of this rank: its global ranks, this rank's position, and the process group (None for one rank).

    `control` is a gloo group of the same ranks, for the small messages by which they compare their calls. No collective
    of the model runs in it, so a rank that comes to another call than the others can't take their data for a message.
    """

    ranks: Ranks
    position: int
    group: ProcessGroup | None
    control: ProcessGroup | None = None

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.ranks)


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """All TP groups and all DP groups of the world, as global ranks.

    `tp_groups` is empty without tensor parallelism (row 2). `tp_given` and `dp_given` are true if the user's own
    process groups are used; the other groups are created.
    """

    tp_groups: tuple[Ranks, ...]
    dp_groups: tuple[Ranks, ...]
    tp_given: bool
    dp_given: bool


@dataclass(frozen=True, slots=True)
class ParallelGroups:
    """The groups of one rank: `tp` shards the model, `dp` averages gradients, `data_index` selects the rank's data.

    `data_index` is equal on all ranks of a TP group, so that they read the same batch. `made` are the process groups
    that were created for this run, on this rank. `run` is the number of the run, equal on all ranks.
    """

    tp: GroupView
    dp: GroupView
    data_index: int
    made: tuple[ProcessGroup, ...] = ()
    run: int = 0


def group_size(group: object) -> int:
    """Return the number of ranks of a process group, or of a list of ranks.

    Raises TpinitError for anything else, and for a group without this rank.
    """
    if isinstance(group, (list, tuple)) and all(type(rank) is int for rank in group):
        return len(group)
    if not isinstance(group, ProcessGroup):
        raise TpinitError(
            f"a {type(group).__qualname__} is not a torch process group with this rank as a member: "
            "give the group that torch.distributed.new_group returned on this rank"
        )
    return dist.get_world_size(group)


def ranks_of(group: object) -> Ranks | None:
    """Return the global ranks of a process group, in its order, or of a list, ascending; None for anything else."""
    if isinstance(group, (list, tuple)):
        return tuple(sorted(group))
    return tuple(dist.get_process_group_ranks(group)) if isinstance(group, ProcessGroup) else None


def plan_groups(decision: Decision, tp: Sequence[Ranks | None], dp: Sequence[Ranks | None]) -> GroupLayout:
    """Return the groups of the world for a decision that is equal on every rank.

    `tp` and `dp` hold, for each rank, the ranks of the TP group and of the mpu's data-parallel group that it was given;
    None if it was given none. Raises AgreementError if these groups do not partition the world, GroupError if they have
    different sizes, if a TP and a DP group do not share exactly one rank, or if row 2 has no group to average over.
    """
    world = decision.world_size
    dp_groups = None
    if any(ranks is not None for ranks in dp):
        dp_groups = _checked_partition("the mpu's data-parallel group", dp)
    if decision.tp_size.value is None:
        if dp_groups is None:
            raise GroupError(
                "row 2: there is no tensor parallelism, and the mpu has no data-parallel group to average gradients "
                "over: give the mpu a method get_data_parallel_group"
            )
        return GroupLayout((), dp_groups, tp_given=False, dp_given=True)
    if decision.tp_group.source is Source.CREATED:
        tp_groups = topology.tp_groups(world, decision.tp_size.value)
        created_dp = topology.dp_groups(world, decision.tp_size.value)
        return GroupLayout(tp_groups, created_dp, tp_given=False, dp_given=False)
    tp_groups = _checked_partition(f"the TP group ({_source(decision)})", tp)
    if dp_groups is None:
        return GroupLayout(tp_groups, topology.orthogonal_groups(tp_groups), tp_given=True, dp_given=False)
    if not topology.crosses_once(tp_groups, dp_groups):
        raise GroupError(
            "the mpu's groups do not cross exactly once: every tensor-parallel group must share exactly one rank "
            f"with every data-parallel group; tensor-parallel {_show(tp_groups)}, data-parallel {_show(dp_groups)}"
        )
    return GroupLayout(tp_groups, dp_groups, tp_given=True, dp_given=True)


def _checked_partition(group_name: str, given: Sequence[Ranks | None]) -> tuple[Ranks, ...]:
    """Return the distinct groups, ordered by rank, if all members of each were given the same and they fill the world.

    Raises AgreementError if not, GroupError if their sizes differ.
    """
    wrong = [
        f"rank {rank} has {list(ranks) if ranks is not None else 'none'}"
        for rank, ranks in enumerate(given)
        if ranks is None or rank not in ranks or any(given[member] != ranks for member in ranks)
    ]
    groups = tuple(sorted({ranks for ranks in given if ranks is not None}))
    if wrong or not topology.partitions(groups, len(given)):
        raise AgreementError(
            f"{group_name} does not partition the world of {len(given)} ranks: every rank must be in exactly one "
            f"group, and all its members must be given the same one; {', '.join(wrong) or _show(groups)}",
            [group_name],
        )
    if len({len(ranks) for ranks in groups}) > 1:
        raise GroupError(f"{group_name} must have one size on all ranks: {_show(groups)}")
    return groups


def _source(decision: Decision) -> str:
    return decision.tp_group.source.value if decision.tp_group.source is not None else "none"


def _show(groups: Sequence[Ranks]) -> str:
    return "; ".join(",".join(map(str, ranks)) for ranks in groups)


def create_groups(
    layout: GroupLayout, decision: Decision, rank: int, timeout: timedelta | None = None
) -> ParallelGroups:
    """Return this rank's groups: those that were given, once tried, and created ones for the others.

    Every rank creates all of them, in one order. `timeout` is that of the created groups; without it they have that of
    the world. Raises GroupError for a given group that does not work.
    """
    given_tp = decision.tp_group.value.handle if decision.tp_group.value is not None else None
    given_dp = decision.dp_group.handle if decision.dp_group is not None else None
    timeout = timeout if timeout is not None else world_timeout()
    for what, given in (("the TP group", given_tp), ("the mpu's data-parallel group", given_dp)):
        if isinstance(given, ProcessGroup):
            try_group(what, given)
    made: list[ProcessGroup] = []
    tp = GroupView((rank,), 0, None)
    if layout.tp_groups:
        tp = _group_view(layout.tp_groups, given_tp if layout.tp_given else None, rank, timeout, made)
        tp = replace(tp, control=_control_group(layout.tp_groups, tp, timeout))
    dp = _group_view(layout.dp_groups, given_dp if layout.dp_given else None, rank, timeout, made)
    if dp.group is not None and message_device(dp.group).type != "cpu":
        dp = replace(dp, control=_control_group(layout.dp_groups, dp, timeout))
    index = next((i for i, ranks in enumerate(layout.tp_groups) if rank in ranks), dp.position)
    return ParallelGroups(tp, dp, index, tuple(made))


def world_timeout() -> timedelta | None:
    """Return the time-out of the world: torch gives the default to a new group, whatever the world has."""
    world = dist.group.WORLD
    kind = "cpu" if "cpu" in backends() else next(iter(backends()), "cpu")
    return timeout_of(world, kind) if world is not None else None


def _group_view(
    groups: Sequence[Ranks], given: object, rank: int, timeout: timedelta | None, made: list[ProcessGroup]
) -> GroupView:
    mine = next(ranks for ranks in groups if rank in ranks)
    if len(mine) == 1:
        return GroupView(mine, 0, None)
    if isinstance(given, ProcessGroup):
        return GroupView(mine, dist.get_rank(given), given)
    if len(groups) == 1 and mine == tuple(range(dist.get_world_size())):
        return GroupView(mine, rank, dist.group.WORLD)
    created = [collective("new_group", "ranks", list(ranks), timeout=timeout) for ranks in groups]
    made.append(created[groups.index(mine)])
    return GroupView(mine, mine.index(rank), created[groups.index(mine)])


_control_groups: weakref.WeakKeyDictionary[ProcessGroup, dict[tuple[Any, ...], ProcessGroup]]
_control_groups = weakref.WeakKeyDictionary()  # by world: groups can't be used after destroy_process_group


def _control_group(groups: Sequence[Ranks], mine: GroupView, timeout: timedelta | None) -> ProcessGroup | None:
    """Return the gloo group of this rank's TP group, made once for a layout; the TP group itself without gloo.

    Runs with one layout share it, so it lives as long as the world. Only its members make it: in a world that is bound
    to a device, torch lets the others split the NCCL communicator of the world, and they would wait for the members.
    """
    world = dist.group.WORLD
    if mine.group is None or world is None:
        return None
    if not dist.is_gloo_available() or "fake" in str(dist.get_backend()):
        return mine.group
    made = _control_groups.setdefault(world, {})
    key = (*groups, timeout)
    if key not in made:
        name = f"tpinit control {len(made)} of ranks {mine.ranks}"
        made[key] = recorded("new_group", name, lambda: local_gloo_group(mine.ranks, name, timeout))
    return made[key]


def free_groups(groups: ParallelGroups) -> None:
    """Destroy the process groups that were created for one run. Collectives in them are an error afterwards."""
    alive = dist.is_initialized()
    for group in groups.made:
        if alive and isinstance(group, ProcessGroup):
            dist.destroy_process_group(group)


def control_groups() -> list[ProcessGroup]:
    """Return the gloo groups in which ranks compare their calls: no layer and no update sends anything there."""
    world = dist.group.WORLD
    return list(_control_groups.get(world, {}).values()) if world is not None else []
