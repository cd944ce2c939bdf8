"""The records of a plan: frozen dataclasses that convert to JSON and back, and print as a table.

Loading, gradient reduction, the gradient norm and clipping find in them which slice of a parameter a rank holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from tpinit.runtime.errors import PlanError
from tpinit.runtime.parallel.blocks import LocalBlock
from tpinit.runtime.parallel.layer_kinds import LayerKind
from tpinit.runtime.shards import pieces
from tpinit.runtime.slicing import Pieces

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

VERSION = 2  # of the JSON format: it changes when a field is renamed, added or removed


class Cut(str, Enum):
    """How a parameter is distributed over the ranks of a TP group.

    `replicated`: every rank holds all of it. `column`: sharded along the output features. `row`: sharded along the
    input features. `vocabulary`: sharded along the token ids.
    """

    REPLICATED = "replicated"
    COLUMN = "column"
    ROW = "row"
    VOCABULARY = "vocabulary"


class GradientRule(str, Enum):
    """What the gradient on one rank is after the backward, before it is averaged over the DP group.

    `sharded`: the complete gradient of this rank's slice. `replicated`: the complete gradient of the whole
    parameter, equal on every rank of the TP group, so a gradient norm counts it once. `partial`: one summand of the
    gradient; it is summed over the ranks that hold the same elements. The names follow DTensor's placements.
    """

    SHARDED = "sharded"
    REPLICATED = "replicated"
    PARTIAL = "partial"


@dataclass(frozen=True, slots=True)
class ParameterPlan:
    """The plan of one parameter.

    `names` are its fully qualified names, more than one if it is tied; `shape` is the shape of the whole tensor.
    `dim` is the dimension that is sharded, None for a replicated parameter. The slices of the ranks are given in one
    of two ways. If `slices` is not empty, `slices[r]` lists the (offset, length) along `dim` that rank r holds, and
    two ranks may hold the same elements. Otherwise `fused_sizes` are the lengths of the parts that are fused along
    `dim` (q, k, v; gate, up; empty for one matrix), and each of these is sharded on its own, in whole units of `unit`
    elements (the size of a head; 1 if any length is legal), see `shards.pieces`. `reason` says why the layer of a
    replicated parameter is not sharded; it is empty if nothing was tried.
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
        """The first of the names."""
        return self.names[0]

    def pieces_of(self, tp_size: int, tp_rank: int) -> Pieces:
        """Return the (offset, length) along `dim` of each piece that a rank holds, in order; empty if replicated."""
        if self.dim is None:
            return ()
        if self.slices:
            return self.slices[tp_rank]
        return pieces(self.fused_sizes or (self.shape[self.dim],), self.unit, tp_size, tp_rank)

    def local_shape(self, tp_size: int, tp_rank: int) -> tuple[int, ...]:
        """Return the shape of the tensor that a rank holds."""
        local_length = sum(length for _, length in self.pieces_of(tp_size, tp_rank))
        return tuple(local_length if dim == self.dim else length for dim, length in enumerate(self.shape))


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The plan of one module that becomes a parallel layer.

    `slices[r]` lists the (offset, length) that rank r holds of the sharded dimension; it is empty for the kinds that
    do not gather, slice or look up (`column`, `row`, `shared output`, `experts`). `reduce_input_grad`: a column layer
    all-reduces the gradient of its input. `draws_random`: the code between the column layers and the row layer of
    this region draws random numbers (dropout), and each rank must draw its own. `fused_with`: the first of the column
    layers that read the same tensor and share one all-reduce of its gradient; empty if the layer does not share.
    `scatter_output`: a row layer reduce-scatters its output over the tokens instead of all-reducing it.
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
    """The patches that let a block (an attention or expert module) compute on one rank's heads or features.

    `num_heads` counts the attention heads of the whole block, and `head_slices[r]` is the (offset, length) of the
    heads of rank r; they are 0 and empty for a block without attention. `attributes` are integer attributes by their
    path below the block (`num_heads`, `config.n_head`), with the value for each rank. `head_arguments` are tensor
    arguments, by name or position, of which a rank takes its heads along the given dimension. `head_outputs` are
    modules inside the block whose output's last dimension counts heads. `first_rank_only` are replicated biases that
    are added before the sum over the TP group, so every rank but the first uses zeros.
    """

    module: str
    num_heads: int = 0
    head_slices: tuple[tuple[int, int], ...] = ()
    attributes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    head_arguments: tuple[tuple[str, int], ...] = ()
    head_outputs: tuple[str, ...] = ()
    first_rank_only: tuple[str, ...] = ()

    def local(self, rank: int) -> LocalBlock:
        """Return the patches for one rank."""
        return LocalBlock(
            {path: values[rank] for path, values in self.attributes},
            dict(self.head_arguments),
            self.head_outputs,
            self.num_heads,
            self.head_slices[rank] if self.head_slices else (0, 0),
        )


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """The plan of one list of layers whose hidden states are sharded along the tokens (sequence parallelism).

    `stack` is the name of the `nn.ModuleList`. `gather_inputs` are the modules in front of which the tokens are
    gathered, and `column_readers` the column layers that read the gathered tensors. `replicated_modules` take all
    tokens and compute the same on every rank. `draws_random`: the layers draw random numbers for their tokens, and
    each rank must draw its own.
    """

    stack: str
    gather_inputs: tuple[str, ...]
    replicated_modules: tuple[str, ...] = ()
    column_readers: tuple[str, ...] = ()
    draws_random: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a model for one rank of a TP group of `tp_size` ranks.

    Only `tp_rank` differs between the ranks of the group. `parameters` has one record for every parameter of the
    model, in the model's order; `layers`, `blocks` and `sequences` have one for every module that changes. `source`
    names where the request came from, and `notes` are sentences for the user: what is not cut, and why.
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
        """Return the groups of column layers that share one all-reduce of their input's gradient."""
        groups: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.fused_with:
                groups.setdefault(layer.fused_with, []).append(layer.module)
        return [tuple(names) for names in groups.values()]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON data. Each parameter also has `pieces` and `local_shape` of this rank, to be read."""
        page: dict[str, Any] = {"version": VERSION, **asdict(self)}
        for page_record, record in zip(page["parameters"], self.parameters, strict=True):
            page_record["pieces"] = [list(piece) for piece in record.pieces_of(self.tp_size, self.tp_rank)]
            page_record["local_shape"] = list(record.local_shape(self.tp_size, self.tp_rank))
        plain: dict[str, Any] = _to_plain(page)
        return plain

    @staticmethod
    def from_json(page: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_json` wrote, with any edits; `pieces` and `local_shape` are ignored.

        Raises PlanError if the format version differs, a field is missing or unknown, or a value has the wrong type.
        """
        try:
            if page["version"] != VERSION:
                raise PlanError(
                    f"the plan has format version {page['version']!r}; this release reads version {VERSION} only. "
                    "Plan again with this release, and repeat your edits (docs/plan.md lists the fields)"
                )
            return Plan(
                int(page["tp_size"]),
                int(page["tp_rank"]),
                tuple(_parameter_from_json(record) for record in page["parameters"]),
                tuple(
                    LayerPlan(**{**_to_tuples(record), "kind": LayerKind(record["kind"])}) for record in page["layers"]
                ),
                tuple(BlockPlan(**_to_tuples(record)) for record in page["blocks"]),
                str(page.get("source", "a plan that was passed")),
                tuple(page.get("notes", ())),
                tuple(SequencePlan(**_to_tuples(record)) for record in page.get("sequences", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(
                f"this is not a plan: {type(error).__name__}: {error}; pass what Plan.to_json() returned"
            ) from error

    def __str__(self) -> str:
        """Return a table of the parameters: name, shape of the whole, cut, this rank's slice, gradient rule; notes."""
        head = ("parameter", "shape", "cut", f"slice of rank {self.tp_rank}/{self.tp_size}", "gradients")
        rows = [head] + [
            (
                " = ".join(record.names),
                " x ".join(map(str, record.shape)) or "scalar",
                record.cut.value,
                self._slice_text(record),
                record.gradient_rule.value,
            )
            for record in self.parameters
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        notes = ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], *notes])

    def _slice_text(self, record: ParameterPlan) -> str:
        local_pieces = record.pieces_of(self.tp_size, self.tp_rank)
        spans = ", ".join(f"{offset}:{offset + length}" for offset, length in local_pieces)
        return f"dim {record.dim}: {spans}" if local_pieces else "whole"


def _parameter_from_json(record: Mapping[str, Any]) -> ParameterPlan:
    fields = {key: value for key, value in record.items() if key not in ("pieces", "local_shape")}
    return ParameterPlan(
        **{
            **_to_tuples(fields),
            "cut": Cut(record["cut"]),
            "gradient_rule": GradientRule(record["gradient_rule"]),
        }
    )


def _to_plain(value: Any) -> Any:
    """Return `value` with enums replaced by their values and tuples by lists."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    return value


def _to_tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with every list, at any depth of its values, replaced by a tuple."""
    return {key: _to_tuple(value) for key, value in record.items()}


def _to_tuple(value: Any) -> Any:
    return tuple(_to_tuple(item) for item in value) if isinstance(value, (list, tuple)) else value
