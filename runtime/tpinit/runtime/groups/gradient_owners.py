"""Which data-parallel rank owns which parameter under ZeRO: it updates it, and from stage 2 on has its gradient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["GradientOwners"]


class GradientOwners:
    """The owner of each parameter of a plan, as a position in the data-parallel group.

    `sizes` are the elements of the whole parameters, in the plan's order: so the ranks of a TP group, whose slices may
    differ in size, agree. A parameter gets an owner when it is first trained: the rank with the fewest elements.
    """

    def __init__(self, sizes: Sequence[int], ranks: int, position: int) -> None:
        self._sizes = sizes
        self._elements = [0] * ranks
        self._position = position
        self.owners: dict[int, int] = {}

    def assign(self, indices: Iterable[int]) -> None:
        """Give an owner to those of the parameters that have none. All ranks must do this with the same parameters."""
        for index in sorted(set(indices) - self.owners.keys()):
            owner = min(range(len(self._elements)), key=self._elements.__getitem__)
            self.owners[index] = owner
            self._elements[owner] += self._sizes[index]

    def is_mine(self, index: int) -> bool:
        """Return whether this rank owns a parameter. One that has no owner yet is the first rank's."""
        return self.owners.get(index, 0) == self._position
