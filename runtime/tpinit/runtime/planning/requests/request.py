"""Where a plan comes from: which layers shall be cut how, by name, before anything is fitted to a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from tpinit.runtime.planning.analysis.example_inputs import unwrap_adapters

__all__ = ["IGNORED_STYLES", "STYLES", "LayerRequest", "PlanRequest", "request_from_tp_plan"]


@dataclass(frozen=True, slots=True)
class LayerRequest:
    """What a source request for one layer: its output features cut, its input features, or neither.

    `whole` says that what is outside stays whole: the output is gathered, or the input split. `blocks` are the
    lengths of what is fused along the cut dimension, each cut on its own, in units of `unit`; empty where the
    source does not say.
    """

    column: bool = False
    row: bool = False
    whole: bool = False
    experts: bool = False
    blocks: tuple[int, ...] = ()
    unit: int = 1

    @property
    def cuts(self) -> bool:
        """Whether anything is to be cut."""
        return self.column or self.row or self.experts


_GATHERED, _SPLIT = LayerRequest(column=True, whole=True), LayerRequest(row=True, whole=True)
STYLES: dict[str, LayerRequest] = {
    "colwise": LayerRequest(column=True),
    "packed_colwise": LayerRequest(column=True),  # how it is packed, the rehearsal finds
    "colwise_gather_output": _GATHERED,
    "colwise_rep": _GATHERED,
    "rowwise": LayerRequest(row=True),
    "packed_rowwise": LayerRequest(row=True),
    "rowwise_split_input": _SPLIT,
    "rowwise_rep": _SPLIT,
    "moe_tp_experts": LayerRequest(experts=True),
}
"""What each style of transformers 5.23 that cuts a matrix or a block of experts request for."""

IGNORED_STYLES: dict[str, str] = {
    "replicated_with_grad_allreduce": "whose gradients are parts, the data flow tells",
    "mla_kv_a_proj": "a whole output that enters a cut block is found by its readers",
    "all_reduce": "a block is summed by its row layers",
    "local_params": "a parameter of one number a head is cut with the heads",
    "moe_identity_expert": "experts that do not sum up stay whole",
    "embedding_rowwise": "the embedding of the tokens is cut by vocabulary with any plan",
    "embedding_colwise": "it is whole on every rank",
    "sequence_parallel": "activations between the blocks are whole on every rank",
    "replicate": "it is whole on every rank",
    "replicated": "it is whole on every rank",
}
"""The other styles, for which nothing needs to be wished, and why."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What one source says: a style for each matrix or block of experts that it names, by module name.

    `source` is for people. `unknown` are styles that this release has no word for, `unmatched` the patterns
    that no module of the model has. `exact` says that a user wrote it: what is gathered or split there is so,
    and what can't be cut as wished is noted, whatever its size. `kept` are modules that no other rule may cut,
    `why` the reasons for what stays whole, by module, and `notes` what else is to be said.
    """

    source: str
    styles: Mapping[str, LayerRequest] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    exact: bool = False
    kept: frozenset[str] = frozenset()
    why: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def request_from_tp_plan(model: nn.Module, names: Sequence[str]) -> PlanRequest | None:
    """Return what the model's own transformers `tp_plan` says of the modules `names`; None where it has none.

    The plan is the instance's, which transformers puts together from the class and the config; else theirs.
    """
    below, model = unwrap_adapters(model)
    own = {name: _without_adapter(name, below) for name in names}
    plan: dict[str, str] = {}
    base = getattr(model, "base_model_prefix", "")
    inner = getattr(model, base, None) if base else None
    prefix = f"{base}." if isinstance(inner, nn.Module) and inner is not model else ""
    of_config: Any = getattr(getattr(model, "config", None), "base_model_tp_plan", None) or {}
    plan.update({f"{prefix}{pattern}": style for pattern, style in of_config.items()})
    plan.update(getattr(model, "_tp_plan", None) or {})
    if not plan:
        return None
    styles: dict[str, LayerRequest] = {}
    unknown, unmatched = set(), []
    for pattern, style in plan.items():
        fits = _expression(pattern).fullmatch
        matched = [name for name, one in own.items() if fits(one)]
        found = STYLES.get(style)
        if found is None:
            unknown.update({style} - IGNORED_STYLES.keys())
            continue
        if not matched and not _names_a_parameter(model, pattern):
            unmatched.append(pattern)
        styles.update(dict.fromkeys(matched, found))
    return PlanRequest("the model's transformers tp_plan", styles, tuple(sorted(unknown)), tuple(unmatched))


def _without_adapter(name: str, below: str) -> str:
    """Return the name that a module had before adapters were wrapped around it."""
    return name.removeprefix(f"{below}.").removesuffix(".base_layer") if below else name


def _expression(pattern: str) -> re.Pattern[str]:
    parts = (r"\d+" if part == "*" else re.escape(part) for part in pattern.split("."))
    return re.compile(r"\.".join(parts))


def _names_a_parameter(model: nn.Module, pattern: str) -> bool:
    fits = _expression(pattern).fullmatch
    return any(fits(name) for name, _ in model.named_parameters(remove_duplicate=False))
