"""Where a plan comes from: which layers shall be cut how, by name, before anything is fitted to a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

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

    `whole` says that what is outside stays whole: the output is gathered, or the input split.
    """

    column: bool = False
    row: bool = False
    whole: bool = False
    experts: bool = False
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one source says: a style for each matrix or block of experts that it names, by module name.

    `source` is for people. `unknown` are styles that this release has no word for, `unmatched` the patterns
    that no module of the model has.
    """

    source: str
    styles: Mapping[str, Style] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()


def from_transformers(model: nn.Module, names: Sequence[str]) -> Wishes | None:
    """Return what the model's own transformers `tp_plan` says of the modules `names`; None where it has none.

    The plan is the instance's, which transformers puts together from the class and the config; else theirs.
    """
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
        matched = [name for name in names if _matches(pattern, name)]
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


def _matches(pattern: str, name: str) -> bool:
    parts = (r"\d+" if part == "*" else re.escape(part) for part in pattern.split("."))
    return re.fullmatch(r"\.".join(parts), name) is not None


def _names_a_parameter(model: nn.Module, pattern: str) -> bool:
    return any(_matches(pattern, name) for name, _ in model.named_parameters(remove_duplicate=False))
