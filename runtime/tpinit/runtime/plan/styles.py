"""Where a plan comes from: which layers shall be cut how, by name, before anything is fitted to a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from tpinit.runtime.plan.examples import wrapped

__all__ = ["Style", "Wishes", "from_transformers"]

_COLUMN = ("colwise", "packed_colwise", "colwise_gather_output", "colwise_rep")
_ROW = ("rowwise", "packed_rowwise", "rowwise_split_input", "rowwise_rep")
_OTHER = (
    "moe_tp_experts",
    "mla_kv_a_proj",
    "embedding_rowwise",
    "embedding_colwise",
    "replicated_with_grad_allreduce",
    "local_params",
    "all_reduce",
    "moe_identity_expert",
    "replicate",
    "replicated",
)


@dataclass(frozen=True, slots=True)
class Style:
    """What a source wishes for one layer: its output features cut, its input features, or neither.

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


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one source says: a style for each matrix or block of experts that it names, by module name.

    `source` is for people. `unknown` are styles that this release has no word for, `unmatched` the patterns
    that no module of the model has. `exact` says that a user wrote it: what is gathered or split there is so,
    and what can't be cut as wished is noted, whatever its size. `kept` are modules that no other rule may cut,
    `why` the reasons for what stays whole, by module, and `notes` what else is to be said.
    """

    source: str
    styles: Mapping[str, Style] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    exact: bool = False
    kept: frozenset[str] = frozenset()
    why: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def from_transformers(model: nn.Module, names: Sequence[str]) -> Wishes | None:
    """Return what the model's own transformers `tp_plan` says of the modules `names`; None where it has none.

    The plan is the instance's, which transformers puts together from the class and the config; else theirs.
    """
    below, model = wrapped(model)
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
    styles: dict[str, Style] = {}
    unknown, unmatched = set(), []
    for pattern, style in plan.items():
        matched = [name for name, one in own.items() if _matches(pattern, one)]
        if style in _COLUMN or style in _ROW:
            found = Style(column=style in _COLUMN, row=style in _ROW, whole="gather" in style or "split" in style)
        elif style == "moe_tp_experts":
            found = Style(experts=True)
        elif style in _OTHER:
            continue
        else:
            unknown.add(style)
            continue
        if not matched and not _names_a_parameter(model, pattern):
            unmatched.append(pattern)
        styles.update(dict.fromkeys(matched, found))
    return Wishes("the model's transformers tp_plan", styles, tuple(sorted(unknown)), tuple(unmatched))


def _without_adapter(name: str, below: str) -> str:
    """Return the name that a module had before adapters were wrapped around it."""
    return name.removeprefix(f"{below}.").removesuffix(".base_layer") if below else name


def _matches(pattern: str, name: str) -> bool:
    parts = (r"\d+" if part == "*" else re.escape(part) for part in pattern.split("."))
    return re.fullmatch(r"\.".join(parts), name) is not None


def _names_a_parameter(model: nn.Module, pattern: str) -> bool:
    return any(_matches(pattern, name) for name, _ in model.named_parameters(remove_duplicate=False))
