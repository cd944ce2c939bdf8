"""A request: which layers of a model shall be sharded, by name, before the planner looks at their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["LayerRequest", "PlanRequest"]


@dataclass(frozen=True, slots=True)
class LayerRequest:
    """What a source requests for one layer.

    `column` shards the output features, `row` the input features; `experts` shards every expert of an expert module.
    With `standalone` the layer has no partner: a column-parallel layer gathers its output, a row-parallel layer splits
    its input. `fused_sizes` are the lengths, in features, of the parts fused along the sharded dimension; each part is
    sharded by itself, in multiples of `unit` features. `fused_sizes` is empty if the source does not name the parts.
    """

    column: bool = False
    row: bool = False
    standalone: bool = False
    experts: bool = False
    fused_sizes: tuple[int, ...] = ()
    unit: int = 1

    @property
    def is_sharded(self) -> bool:
        """Whether the layer is to be sharded at all."""
        return self.column or self.row or self.experts


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What one source requests: `layers` maps the names of linear layers and expert modules to their requests.

    `source` names the source in messages. `unknown_styles` are the `tp_plan` styles that this release does not know;
    `unmatched_patterns` are the patterns that match no module of the model. `from_user` is true if a user wrote the
    request: then a `standalone` layer is never paired with another one, and the plan notes every requested layer that
    stays replicated, whatever its size. `replicated` are the modules that no other rule may shard. `reasons` says, by
    module name, why a module stays replicated. `notes` go into the plan's notes as they are.
    """

    source: str
    layers: Mapping[str, LayerRequest] = field(default_factory=dict)
    unknown_styles: tuple[str, ...] = ()
    unmatched_patterns: tuple[str, ...] = ()
    from_user: bool = False
    replicated: frozenset[str] = frozenset()
    reasons: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
