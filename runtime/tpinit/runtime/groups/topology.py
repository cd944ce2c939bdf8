"""Which rank belongs to which group: integer arithmetic, no torch, no dependencies (contract, section 6, item 8).

A created TP group is `tp_size` neighbouring ranks; a DP group takes every `tp_size`-th rank. So each rank has one
pair (dp_rank, tp_rank). For TP groups that the user gives, the DP groups are derived by position: the i-th ranks of
all TP groups form a DP group.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "crosses_once",
    "dp_group",
    "dp_groups",
    "dp_rank",
    "dp_size",
    "orthogonal_groups",
    "partitions",
    "rank_at",
    "tp_group",
    "tp_groups",
    "tp_rank",
]

Ranks = tuple[int, ...]


def tp_rank(rank: int, tp_size: int) -> int:
    """Return the position of `rank` in its created TP group, 0 to tp_size - 1."""
    return rank % tp_size


def dp_rank(rank: int, tp_size: int) -> int:
    """Return the index of the created TP group of `rank`, which is also its position in its DP group."""
    return rank // tp_size


def rank_at(dp: int, tp: int, tp_size: int) -> int:
    """Return the rank whose `dp_rank` is `dp` and whose `tp_rank` is `tp`."""
    return dp * tp_size + tp


def dp_size(world_size: int, tp_size: int) -> int:
    """Return the number of created TP groups of a world. `tp_size` divides `world_size`."""
    return world_size // tp_size


def tp_group(index: int, tp_size: int) -> Ranks:
    """Return the ranks of created TP group `index`: neighbours, in order."""
    return tuple(rank_at(index, position, tp_size) for position in range(tp_size))


def dp_group(position: int, world_size: int, tp_size: int) -> Ranks:
    """Return the ranks at `position` of every created TP group, in order: one rank in `tp_size`."""
    return tuple(rank_at(index, position, tp_size) for index in range(dp_size(world_size, tp_size)))


def tp_groups(world_size: int, tp_size: int) -> tuple[Ranks, ...]:
    """Return all created TP groups of a world. `tp_size` is at least 1 and divides `world_size`."""
    return tuple(tp_group(index, tp_size) for index in range(dp_size(world_size, tp_size)))


def dp_groups(world_size: int, tp_size: int) -> tuple[Ranks, ...]:
    """Return all DP groups of a world with created TP groups, by position."""
    return tuple(dp_group(position, world_size, tp_size) for position in range(tp_size))


def partitions(groups: Sequence[Ranks], world_size: int) -> bool:
    """Return whether the groups hold every rank of the world exactly once."""
    return sorted(rank for group in groups for rank in group) == list(range(world_size))


def orthogonal_groups(groups: Sequence[Ranks]) -> tuple[Ranks, ...]:
    """Return, for groups of one size, the groups of the ranks at each position: each crosses every given group once."""
    return tuple(zip(*groups, strict=True))


def crosses_once(all_tp: Sequence[Ranks], all_dp: Sequence[Ranks]) -> bool:
    """Return whether every TP group has exactly one rank in common with every DP group."""
    return all(len(set(tp) & set(dp)) == 1 for tp in all_tp for dp in all_dp)
