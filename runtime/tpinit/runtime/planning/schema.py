"""The records of a plan: plain data, JSON-able, printable. Norm, clip, save and re-cut read these alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

from tpinit.runtime.errors import PlanError
from tpinit.runtime.parallel.blocks import LocalBlock
from tpinit.runtime.shards import pieces

__all__ = [
    "BlockPlan",
    "Cut",
    "GradientRule",
    "LayerKind",
    "LayerPlan",
    "ParameterPlan",
    "Plan",
    "SequencePlan",
]

Pieces = tuple[tuple[int, int], ...]
VERSION = 2


class Cut(str, Enum):
    """How a parameter lies over the ranks of a TP group."""

    REPLICATED = "replicated"
    COLUMN = "column"
    ROW = "row"
    VOCABULARY = "vocabulary"


class GradientRule(str, Enum):
    """What a rank's gradient is, before averaging over the data-parallel ranks.

    `sharded`: the complete gradient of this rank's slice, and of nothing else. `replicated`: the complete gradient of
    the whole parameter, equal on every rank of the TP group, so it counts once in a norm. `partial`: a part of
    the gradient of what several ranks hold, to be summed over those that hold it.
    """

    SHARDED = "sharded"
    REPLICATED = "replicated"
    PARTIAL = "partial"


class LayerKind(str, Enum):
    """What becomes of a module.

    `column`: its output features are cut. `row`: its input features are cut and its output is summed.
    `column gather`, `row split`: the same, with whole features outside. `shared output`: whole, and what
    enters a cut block of its output collects its gradient from all ranks. `embedding`, `head`: cut by
    vocabulary. `experts`: all experts of a layer, each cut inside; the output is summed.
    """

    COLUMN = "column"
    ROW = "row"
    COLUMN_GATHER = "column gather"
    ROW_SPLIT = "row split"
    SHARED_OUTPUT = "shared output"
    EMBEDDING = "embedding"
    HEAD = "head"
    EXPERTS = "experts"


@dataclass(frozen=True, slots=True)
class ParameterPlan:
    """One logical parameter: its names (more than one where it is tied), whole shape, and cut.

    `dim` is the dimension that is cut, None for a replicated parameter; `unit` is how many neighbours along
    it stay on one rank (a head's size, 1 where any cut will do). `blocks` are the lengths along `dim` of what
    is fused there and cut each on its own (q, k, v; gate, up), empty where it is one block. `slices`, where
    given, says instead for each rank which (offset, length) it holds: ranks may share some of it.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    cut: Cut
    dim: int | None
    gradient_rule: GradientRule
    unit: int = 1
    fused_sizes: tuple[int, ...] = ()
    slices: tuple[Pieces, ...] = ()
    reason: str = ""

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    def pieces_of(self, tp_size: int, tp_rank: int) -> Pieces:
        """Return the (offset, length) along `dim` of each piece a rank holds, in order; none where nothing is cut."""
        if self.dim is None:
            return ()
        if self.slices:
            return self.slices[tp_rank]
        return pieces(self.fused_sizes or (self.shape[self.dim],), self.unit, tp_size, tp_rank)

    def local_shape(self, tp_size: int, tp_rank: int) -> tuple[int, ...]:
        """Return the shape of the local tensor."""
        held = sum(length for _, length in self.pieces_of(tp_size, tp_rank))
        return tuple(held if dim == self.dim else length for dim, length in enumerate(self.shape))


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What becomes of one module.

    `ranks`: for the kinds that gather, split or look up, the (offset, length) of each rank's pieces of the
    dimension that is cut. `entry`: whether a column layer itself collects the gradient of its input. `random`:
    whether what lies between the columns and the row draws random numbers, which must differ on each rank.
    `fused_with`: of the layers that read one tensor, and alone take it into the group, the first; empty where experts
    do too.
    `scatter`: whether what a row layer gives is this rank's part of the tokens.
    """

    module: str
    kind: LayerKind
    slices: tuple[Pieces, ...] = ()
    reduce_input_grad: bool = True
    draws_random: bool = False
    fused_with: str = ""
    scatter_output: bool = False


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """A block around cut layers, and what it must be told so that it works on a part of the heads.

    `heads` and `head_ranks`: how many attention heads there are, and the (offset, length) of each rank; 0 and
    empty without attention. `once`: parameters of a block of experts that the first rank alone uses, because they
    are added before the sum. The rest is as in `rehearsal.Adaptation`.
    """

    module: str
    num_heads: int = 0
    head_slices: tuple[tuple[int, int], ...] = ()
    attributes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    head_arguments: tuple[tuple[str, int], ...] = ()
    head_outputs: tuple[str, ...] = ()
    first_rank_only: tuple[str, ...] = ()

    def local(self, rank: int) -> LocalBlock:
        """Return how the block is patched on one rank."""
        return LocalBlock(
            {path: ranks[rank] for path, ranks in self.attributes},
            dict(self.head_arguments),
            self.head_outputs,
            self.num_heads,
            self.head_slices[rank] if self.head_slices else (0, 0),
        )


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """A list of layers between whose cut regions each rank has its part of the tokens.

    `entries`: the modules that begin a cut region, and gather the tokens that enter them; `readers` the columns that
    read what they gather. `whole`: modules that see all tokens and compute the same on every rank. `random`: whether
    random numbers are drawn in the layers, which must differ on each rank.
    """

    stack: str
    gather_inputs: tuple[str, ...]
    replicated_modules: tuple[str, ...] = ()
    column_readers: tuple[str, ...] = ()
    draws_random: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What every parameter and module of a model is, for one rank of a TP group of `tp_size` ranks.

    Only `tp_rank` differs between the ranks of a group: all else is equal on all of them. `source` says where
    the plan came from, `notes` what of the model is not cut, and why. `sequences` say where tokens are cut too.
    """

    tp_size: int
    tp_rank: int
    parameters: tuple[ParameterPlan, ...]
    layers: tuple[LayerPlan, ...] = ()
    blocks: tuple[BlockPlan, ...] = ()
    source: str = "structure"
    notes: tuple[str, ...] = ()
    sequences: tuple[SequencePlan, ...] = ()

    def fused_column_groups(self) -> list[tuple[str, ...]]:
        """Return the layers that read one tensor and go into the group together."""
        found: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.fused_with:
                found.setdefault(layer.fused_with, []).append(layer.module)
        return [tuple(names) for names in found.values()]

    def of_rank(self, tp_rank: int) -> Plan:
        """Return the plan of another rank of the group."""
        return replace(self, tp_rank=tp_rank)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain data, with this rank's slice of each parameter beside what `from_json` reads."""
        page: dict[str, Any] = {"version": VERSION, **asdict(self)}
        for record, one in zip(page["parameters"], self.parameters, strict=True):
            record["pieces"] = [list(piece) for piece in one.pieces_of(self.tp_size, self.tp_rank)]
            record["local_shape"] = list(one.local_shape(self.tp_size, self.tp_rank))
        plain: dict[str, Any] = _plain(page)
        return plain

    @staticmethod
    def from_json(page: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_json` gave, perhaps edited. Raises PlanError for anything else."""
        try:
            if page["version"] != VERSION:
                raise PlanError(
                    f"the plan has format version {page['version']!r}; this release reads version {VERSION} only. "
                    "Plan again with this release, and repeat your edits (docs/plan.md lists the fields)"
                )
            parameters = [
                {key: one for key, one in record.items() if key not in ("pieces", "local_shape")}
                for record in page["parameters"]
            ]
            return Plan(
                int(page["tp_size"]),
                int(page["tp_rank"]),
                tuple(
                    ParameterPlan(
                        **{
                            **_tuples(record),
                            "cut": Cut(record["cut"]),
                            "gradient_rule": GradientRule(record["gradient_rule"]),
                        }
                    )
                    for record in parameters
                ),
                tuple(LayerPlan(**{**_tuples(one), "kind": LayerKind(one["kind"])}) for one in page["layers"]),
                tuple(BlockPlan(**_tuples(one)) for one in page["blocks"]),
                str(page.get("source", "a plan that was passed")),
                tuple(page.get("notes", ())),
                tuple(SequencePlan(**_tuples(one)) for one in page.get("sequences", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(
                f"this is no plan: {type(error).__name__}: {error}; give what Plan.to_json() returned"
            ) from error

    def __str__(self) -> str:
        """Return a table: name, whole shape, cut, this rank's slice, gradients."""
        head = ("parameter", "shape", "cut", f"slice of rank {self.tp_rank}/{self.tp_size}", "gradients")
        rows = [head] + [
            (
                " = ".join(one.names),
                " x ".join(map(str, one.shape)) or "scalar",
                one.cut.value,
                self._slice_text(one),
                one.gradient_rule.value,
            )
            for one in self.parameters
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        notes = ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], *notes])

    def _slice_text(self, one: ParameterPlan) -> str:
        held = one.pieces_of(self.tp_size, self.tp_rank)
        spans = ", ".join(f"{offset}:{offset + length}" for offset, length in held)
        return f"dim {one.dim}: {spans}" if held else "whole"


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _tuple(value) for key, value in record.items()}


def _tuple(value: Any) -> Any:
    return tuple(_tuple(one) for one in value) if isinstance(value, (list, tuple)) else value
