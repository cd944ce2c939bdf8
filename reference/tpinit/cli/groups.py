"""Reads process groups from the command line: '0,2;1,3' lists every TP group of the world.

The groups must be disjoint, of one size, and together hold the ranks 0 to world - 1. The order of the groups and
the order of the ranks in a group have no meaning, as with process groups.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tpinit.reference.errors import Problem
from tpinit.reference.spellings import MAX_DIGITS, show

__all__ = ["RankGroups", "RankMpu", "parse_groups", "world_problems"]

FIX = "list every group of the world, ranks split by ',' and groups by ';', as in '0,1;2,3'"


@dataclass(frozen=True, slots=True)
class RankGroups:
    """All TP groups of a world, in order; each is a sorted tuple of ranks, and all have one size."""

    groups: tuple[tuple[int, ...], ...]

    @property
    def ranks(self) -> int:
        """The number of ranks in all groups together."""
        return sum(len(group) for group in self.groups)

    @property
    def largest(self) -> int:
        """The largest rank of all groups."""
        return max(group[-1] for group in self.groups)

    def of(self, rank: int) -> tuple[int, ...]:
        """Return the group that holds this rank, which must be a rank of the world."""
        return next(group for group in self.groups if rank in group)

    def first_difference(self, other: RankGroups) -> int:
        """Return the first rank whose group differs in the other list, which must differ and be of the same world."""
        return min(rank for group in set(self.groups) - set(other.groups) for rank in group)

    def across(self, rank: int) -> tuple[int, ...]:
        """Return the DP group of this rank: the ranks at the same index in every TP group."""
        place = self.of(rank).index(rank)
        return tuple(group[place] for group in self.groups)


@dataclass(frozen=True, slots=True)
class RankMpu:
    """An mpu over rank lists, with the six methods that DeepSpeed calls."""

    rank: int
    tp_group: tuple[int, ...]
    dp_group: tuple[int, ...]

    def get_model_parallel_group(self) -> tuple[int, ...]:
        """Return the TP group of the rank."""
        return self.tp_group

    def get_model_parallel_rank(self) -> int:
        """Return the index of the rank in its TP group."""
        return self.tp_group.index(self.rank)

    def get_model_parallel_world_size(self) -> int:
        """Return the size of the TP group, in ranks."""
        return len(self.tp_group)

    def get_data_parallel_group(self) -> tuple[int, ...]:
        """Return the DP group of the rank."""
        return self.dp_group

    def get_data_parallel_rank(self) -> int:
        """Return the index of the rank in its DP group."""
        return self.dp_group.index(self.rank)

    def get_data_parallel_world_size(self) -> int:
        """Return the size of the DP group, in ranks."""
        return len(self.dp_group)


def parse_groups(option: str, text: str) -> RankGroups | Problem:
    """Return the groups that an option lists, or the first problem of the list."""

    def problem(message: str) -> Problem:
        return Problem(option, show(text), message, FIX)

    groups = []
    for part in text.split(";"):
        words = [word.strip() for word in part.split(",")]
        if words == [""]:
            return problem("a group is empty" if text.strip() else "no group is given")
        unread = next((word for word in words if not re.fullmatch(r"[0-9]+", word) or len(word) > MAX_DIGITS), None)
        if unread is not None:
            return problem(f"{show(unread)} is not a rank: a rank is an integer of at least 0")
        groups.append(tuple(sorted(map(int, words))))
    twice = _first_repeated(rank for group in groups for rank in group)
    if twice is not None:
        return problem(f"rank {show(twice)} is listed twice: groups are disjoint")
    if len({len(group) for group in groups}) > 1:
        sizes = sorted({len(group) for group in groups})
        return problem(f"groups of {sizes[0]} and of {sizes[-1]} ranks: all groups of a world have one size")
    return RankGroups(tuple(sorted(groups)))


def world_problems(option: str, text: str, groups: RankGroups, world: int) -> list[Problem]:
    """Return the problem if these are not the groups of a world of this many ranks, else an empty list."""
    if groups.ranks == world and groups.largest == world - 1:
        return []
    if groups.largest >= world:
        message = f"rank {show(groups.largest)} is outside a world of {show(world)}: its ranks start at 0"
    else:
        held = {rank for group in groups.groups for rank in group}
        missing = next(rank for rank in range(world) if rank not in held)
        message = f"rank {missing} is in no group: every rank of the world of {show(world)} must be in one"
    return [Problem(option, show(text), message, FIX)]


def _first_repeated(ranks: Iterable[int]) -> int | None:
    seen: set[int] = set()
    for rank in ranks:
        if rank in seen:
            return rank
        seen.add(rank)
    return None
