"""The process groups of a run: the one that shards and the one that averages gradients.

The decision names the TP group. The groups of all ranks, as lists of ranks, are gathered before anything is
made, so what is refused here is refused on every rank, with the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed import ProcessGroup
from tpinit.reference.errors import TpinitError
from tpinit.runtime.errors import AgreementError, GroupError
from tpinit.runtime.groups import topology
from tpinit.spec.vocabulary import Decision, Source

__all__ = ["GroupLayout", "ParallelGroups", "GroupView", "group_size", "plan_groups", "create_groups", "ranks_of"]

Ranks = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupView:
    """One group of this rank: its ranks, this rank's position, and the process group (None for a group of one)."""

    ranks: Ranks
    position: int
    group: ProcessGroup | None

    @property
    def size(self) -> int:
        """How many ranks."""
        return len(self.ranks)


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """All groups of the world: which ranks shard together, and which average together.

    `tp_groups` is empty without AutoTP (row 2). `tp_given` and `dp_given` say that the user's own process
    groups are used; the others are made.
    """

    tp_groups: tuple[Ranks, ...]
    dp_groups: tuple[Ranks, ...]
    tp_given: bool
    dp_given: bool


@dataclass(frozen=True, slots=True)
class ParallelGroups:
    """The groups of one rank: `tp` shards, `dp` averages gradients, `data_index` picks this rank's data.

    `data_index` is equal on all ranks of a TP group, so that they see the same batch.
    """

    tp: GroupView
    dp: GroupView
    data_index: int


def group_size(group: object) -> int:
    """Return the number of ranks of a process group, or of a list of ranks. Raises TpinitError for anything else.

    A group that this rank is not a member of is refused too: it can't shard here.
    """
    if isinstance(group, (list, tuple)) and all(type(rank) is int for rank in group):
        return len(group)
    if not isinstance(group, ProcessGroup):
        raise TpinitError(
            f"a {type(group).__qualname__} is not a torch process group that this rank is a member of: "
            "give the group that torch.distributed.new_group returned on this rank"
        )
    return dist.get_world_size(group)


def ranks_of(group: object) -> Ranks | None:
    """Return the global ranks of a process group in its order, or of a list in ascending order; None without."""
    if isinstance(group, (list, tuple)):
        return tuple(sorted(group))
    return tuple(dist.get_process_group_ranks(group)) if isinstance(group, ProcessGroup) else None


def plan_groups(decision: Decision, tp: Sequence[Ranks | None], dp: Sequence[Ranks | None]) -> GroupLayout:
    """Return the groups of the world for a decision that every rank shares.

    `tp` and `dp` hold, for each rank, the ranks of the TP group and of the mpu's data-parallel group that it
    was given. Raises AgreementError where they do not partition the world, GroupError where the mpu's two groups do not
    cross exactly once, or where row 2 has no group to average over.
    """
    world = decision.world_size
    averaging = _agreed("the mpu's data-parallel group", dp) if any(ranks is not None for ranks in dp) else None
    if decision.tp_size.value is None:
        if averaging is None:
            raise GroupError(
                "row 2: no tensor parallelism, and the mpu has no data-parallel group to average gradients over: "
                "give it get_data_parallel_group"
            )
        return GroupLayout((), averaging, tp_given=False, dp_given=True)
    if decision.tp_group.source is Source.CREATED:
        sharding = topology.tp_groups(world, decision.tp_size.value)
        return GroupLayout(sharding, topology.dp_groups(world, decision.tp_size.value), tp_given=False, dp_given=False)
    sharding = _agreed(f"the TP group ({_source(decision)})", tp)
    if averaging is None:
        return GroupLayout(sharding, topology.orthogonal_groups(sharding), tp_given=True, dp_given=False)
    if not topology.crosses_once(sharding, averaging):
        raise GroupError(
            "the mpu's groups do not cross exactly once: every tensor-parallel group must share exactly one rank "
            f"with every data-parallel group; tensor-parallel {_show(sharding)}, data-parallel {_show(averaging)}"
        )
    return GroupLayout(sharding, averaging, tp_given=True, dp_given=True)


def _agreed(what: str, given: Sequence[Ranks | None]) -> tuple[Ranks, ...]:
    """Return the distinct groups, by first rank, if every rank is in its own and all say the same."""
    wrong = [
        f"rank {rank} has {list(ranks) if ranks is not None else 'none'}"
        for rank, ranks in enumerate(given)
        if ranks is None or rank not in ranks or any(given[member] != ranks for member in ranks)
    ]
    groups = tuple(sorted({ranks for ranks in given if ranks is not None}))
    if wrong or not topology.partitions(groups, len(given)):
        raise AgreementError(
            f"{what} does not partition the world of {len(given)} ranks: every rank must be in exactly one group, "
            f"and all members must hold the same one; {', '.join(wrong) or _show(groups)}",
            [what],
        )
    if len({len(ranks) for ranks in groups}) > 1:
        raise GroupError(f"{what} has different sizes on different ranks: {_show(groups)}")
    return groups


def _source(decision: Decision) -> str:
    return decision.tp_group.source.value if decision.tp_group.source is not None else "none"


def _show(groups: Sequence[Ranks]) -> str:
    return "; ".join(",".join(map(str, ranks)) for ranks in groups)


def create_groups(layout: GroupLayout, decision: Decision, rank: int) -> ParallelGroups:
    """Return this rank's groups, making those that nobody gave: every rank makes all of them, in one order."""
    given_tp = decision.tp_group.value.handle if decision.tp_group.value is not None else None
    given_dp = decision.dp_group.handle if decision.dp_group is not None else None
    alone = GroupView((rank,), 0, None)
    tp = _side(layout.tp_groups, given_tp if layout.tp_given else None, rank) if layout.tp_groups else alone
    dp = _side(layout.dp_groups, given_dp if layout.dp_given else None, rank)
    index = next((i for i, ranks in enumerate(layout.tp_groups) if rank in ranks), dp.position)
    return ParallelGroups(tp, dp, index)


def _side(groups: Sequence[Ranks], given: object, rank: int) -> GroupView:
    mine = next(ranks for ranks in groups if rank in ranks)
    if len(mine) == 1:
        return GroupView(mine, 0, None)
    if isinstance(given, ProcessGroup):
        return GroupView(mine, dist.get_rank(given), given)
    if len(groups) == 1 and mine == tuple(range(dist.get_world_size())):
        return GroupView(mine, rank, dist.group.WORLD)
    made = [dist.new_group(list(ranks)) for ranks in groups]
    return GroupView(mine, mine.index(rank), made[groups.index(mine)])
