"""The records of a plan: plain data, JSON-able, printable. Norm, clip, save and re-cut read these alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tpinit.runtime.shards import pieces

__all__ = ["Cut", "GradientRule", "ParameterPlan", "Plan", "RegionPlan"]


class Cut(str, Enum):
    """How a parameter lies over the ranks of a TP group."""

    REPLICATED = "replicated"
    COLUMN = "column"
    ROW = "row"


class GradientRule(str, Enum):
    """What a rank's gradient is, before averaging over the data-parallel ranks.

    `own`: the complete gradient of this rank's slice, and of nothing else. `same`: the complete gradient of
    the whole parameter, equal on every rank of the TP group, so it counts once in a norm.
    """

    OWN = "own"
    SAME = "same"


@dataclass(frozen=True, slots=True)
class ParameterPlan:
    """One logical parameter: its names (more than one where it is tied), whole shape, and cut.

    `dim` is the dimension that is cut, None for a replicated parameter; `unit` is how many neighbours along
    it stay on one rank (a head's size, 1 where any cut will do). `blocks` are the lengths along `dim` of what
    is fused there and cut each on its own (q, k, v; gate, up), empty where it is one block.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    cut: Cut
    dim: int | None
    gradients: GradientRule
    unit: int = 1
    blocks: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    def pieces_of(self, tp_size: int, tp_rank: int) -> tuple[tuple[int, int], ...]:
        """Return the (offset, length) along `dim` of each piece a rank holds, in order; none where nothing is cut."""
        if self.dim is None:
            return ()
        return pieces(self.blocks or (self.shape[self.dim],), self.unit, tp_size, tp_rank)

    def local_shape(self, tp_size: int, tp_rank: int) -> tuple[int, ...]:
        """Return the shape of the local tensor."""
        held = sum(length for _, length in self.pieces_of(tp_size, tp_rank))
        return tuple(held if dim == self.dim else length for dim, length in enumerate(self.shape))


@dataclass(frozen=True, slots=True)
class RegionPlan:
    """One cut region: the module that encloses it, the input that its column layers share, and its layers.

    `local` are the numbers that the module or its config holds of the whole, and what each is on one rank.
    """

    module: str
    argument: str
    columns: tuple[str, ...]
    row: str
    local: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What every parameter of a model is, for one rank of a TP group of `tp_size` ranks.

    Only `tp_rank` differs between the ranks of a group: parameters and regions are equal on all of them.
    """

    tp_size: int
    tp_rank: int
    parameters: tuple[ParameterPlan, ...]
    regions: tuple[RegionPlan, ...]

    def to_json(self) -> dict[str, object]:
        """Return the plan as plain data, with this rank's slice of each parameter."""
        return {
            "tp_size": self.tp_size,
            "tp_rank": self.tp_rank,
            "parameters": [
                {
                    "names": list(one.names),
                    "shape": list(one.shape),
                    "cut": one.cut.value,
                    "dim": one.dim,
                    "unit": one.unit,
                    "blocks": list(one.blocks),
                    "pieces": [list(piece) for piece in one.pieces_of(self.tp_size, self.tp_rank)],
                    "local_shape": list(one.local_shape(self.tp_size, self.tp_rank)),
                    "gradients": one.gradients.value,
                }
                for one in self.parameters
            ],
        }

    def __str__(self) -> str:
        """Return a table: name, whole shape, cut, this rank's slice, gradients."""
        head = ("parameter", "shape", "cut", f"slice of rank {self.tp_rank}/{self.tp_size}", "gradients")
        rows = [head] + [
            (
                " = ".join(one.names),
                " x ".join(map(str, one.shape)) or "scalar",
                one.cut.value,
                self._slice_text(one),
                one.gradients.value,
            )
            for one in self.parameters
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    def _slice_text(self, one: ParameterPlan) -> str:
        held = one.pieces_of(self.tp_size, self.tp_rank)
        spans = ", ".join(f"{offset}:{offset + length}" for offset, length in held)
        return f"dim {one.dim}: {spans}" if held else "whole"
