"""Converts process groups of any type to the contract's `Group`: an identity and a size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tpinit.reference.errors import Problem
from tpinit.reference.spellings import plain_int, show
from tpinit.spec.vocabulary import Group

__all__ = ["GroupTable"]

_LEGAL = "give a process group (an object with size()), or a list of ranks"


class GroupTable:
    """Converts users' groups to `Group`s: the same object always gets the same identity.

    Objects are compared by `is`. Lists and tuples of ranks are compared by value, in order, so that equal
    lists are one group (D12). The table keeps a reference to every object, so that no identity is reused; the
    object is the `Group`'s handle (for a list of ranks: a tuple of them).

    The size, in ranks, is `group_size(object)` if `group_size` was given, else the object's `size()`, else the
    number of listed ranks. `world_size`, if given, bounds the ranks.
    """

    def __init__(self, group_size: Callable[[object], int] | None = None, world_size: int | None = None) -> None:
        self._group_size = group_size
        self._world_size = world_size
        self._groups: list[tuple[object, Group]] = []

    def group(self, value: object, path: str, problems: list[Problem]) -> Group | None:
        """Return `value` as a `Group`, or None after adding the reason to `problems`."""
        handle = value
        if isinstance(value, (list, tuple, range)):
            ranks = self._ranks(value, path, problems)
            if ranks is None:
                return None
            handle = ranks
        elif isinstance(value, (str, bytes, int, float, Mapping)):
            # torch returns -100 for a group that this rank does not belong to.
            problems.append(Problem(path, show(value), "this is not a process group", _LEGAL))
            return None
        for known, group in self._groups:
            if known is handle or (isinstance(handle, tuple) and isinstance(known, tuple) and known == handle):
                return group
        size = self._size(handle, path, problems)
        if size is None:
            return None
        made = Group(len(self._groups), size, handle)
        self._groups.append((handle, made))
        return made

    def _ranks(self, value: Sequence[object], path: str, problems: list[Problem]) -> tuple[int, ...] | None:
        if not value:
            problems.append(Problem(path, show(value), "a group has at least 1 rank", "list the ranks of the group"))
            return None
        ranks = tuple(rank for item in value if (rank := plain_int(item)) is not None)
        message = ""
        if len(ranks) != len(value) or min(ranks) < 0:
            message = "ranks are integers of at least 0"
        elif len(set(ranks)) != len(ranks):
            message = "a rank is listed twice"
        elif self._world_size is not None and max(ranks) >= self._world_size:
            message = f"a world of {self._world_size} has the ranks 0 to {self._world_size - 1}"
        if message:
            problems.append(Problem(path, show(value), message, "list each rank of the group once"))
            return None
        return ranks

    def _size(self, handle: object, path: str, problems: list[Problem]) -> int | None:
        own = None if self._group_size is not None else _size_method(handle)
        if self._group_size is None and own is None and not isinstance(handle, tuple):
            problems.append(Problem(path, show(handle), "this is not a process group", _LEGAL))
            return None
        try:
            if self._group_size is not None:
                size: object = self._group_size(handle)
            else:
                size = own() if own is not None else len(handle)  # type: ignore[arg-type] # a tuple, by the guard above
        except Exception as error:  # a user's object may raise anything; the problem quotes it
            message = f"the size of this group could not be read: {type(error).__name__}: {error}"
            problems.append(Problem(path, show(handle), message, _LEGAL, cause=error))
            return None
        ranks = plain_int(size)
        if ranks is None or ranks < 1:
            message = f"this group reports the size {show(size)}; a size is an integer of at least 1"
            fix = "on each rank, give a group that this rank belongs to"
            problems.append(Problem(path, show(handle), message, fix))
            return None
        return ranks


def _size_method(handle: object) -> Callable[[], object] | None:
    if isinstance(handle, tuple):
        return None
    method = getattr(handle, "size", None)
    return method if callable(method) else None
