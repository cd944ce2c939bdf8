"""The request of a model's own transformers `tp_plan`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from tpinit.runtime.internals.transformers_private import tp_plans
from tpinit.runtime.planning.analysis.example_inputs import unwrap_adapters
from tpinit.runtime.planning.requests.request import LayerRequest, PlanRequest

__all__ = ["IGNORED_STYLES", "STYLES", "request_from_tp_plan"]

_GATHERED = LayerRequest(column=True, standalone=True)
_SPLIT = LayerRequest(row=True, standalone=True)

STYLES: dict[str, LayerRequest] = {
    "colwise": LayerRequest(column=True),
    "packed_colwise": LayerRequest(column=True),  # the dry run finds how the parts are packed
    "colwise_gather_output": _GATHERED,
    "colwise_rep": _GATHERED,
    "rowwise": LayerRequest(row=True),
    "packed_rowwise": LayerRequest(row=True),
    "rowwise_split_input": _SPLIT,
    "rowwise_rep": _SPLIT,
    "moe_tp_experts": LayerRequest(experts=True),
}
"""The request of each style of transformers 5.23 that shards a linear layer or a block of experts."""

IGNORED_STYLES: dict[str, str] = {
    "replicated_with_grad_allreduce": "the trace finds the parameters whose gradients are partial",
    "mla_kv_a_proj": "the trace finds a replicated output that enters a sharded block, by its readers",
    "all_reduce": "the row-parallel layers of a block sum its output",
    "local_params": "a parameter with one element per head is sharded with the heads",
    "moe_identity_expert": "experts whose outputs are not summed stay replicated",
    "embedding_rowwise": "the token embedding is vocab-parallel in every plan",
    "embedding_colwise": "the embedding is replicated",
    "sequence_parallel": "activations between the blocks are replicated",
    "replicate": "the module is replicated",
    "replicated": "the module is replicated",
}
"""The other styles of transformers 5.23, with the reason why each needs no request."""


def request_from_tp_plan(model: nn.Module, names: Sequence[str]) -> PlanRequest | None:
    """Return what the model's own transformers `tp_plan` requests for the modules `names`; None without a `tp_plan`.

    The plan is that of the instance, which transformers merges from its class and its config; entries of
    `config.base_model_tp_plan` that the instance lacks are added.
    """
    wrapped, model = unwrap_adapters(model)
    plan = _tp_plan(model)
    if not plan:
        return None
    names_in_plan = {name: _name_without_adapter(name, wrapped) for name in names}
    layers: dict[str, LayerRequest] = {}
    unknown_styles: set[str] = set()
    unmatched_patterns: list[str] = []
    for pattern, style in plan.items():
        matches = _regex(pattern).fullmatch
        matched = [name for name, name_in_plan in names_in_plan.items() if matches(name_in_plan)]
        layer_request = STYLES.get(style)
        if layer_request is None:
            unknown_styles.update({style} - IGNORED_STYLES.keys())
            continue
        if not matched and not _matches_parameter(model, pattern):
            unmatched_patterns.append(pattern)
        layers.update(dict.fromkeys(matched, layer_request))
    return PlanRequest(
        "the model's transformers tp_plan", layers, tuple(sorted(unknown_styles)), tuple(unmatched_patterns)
    )


def _tp_plan(model: nn.Module) -> dict[str, str]:
    """Return the styles of a transformers model by pattern; the instance's plan overrides that of the config."""
    own_plan, config_plan, prefix = tp_plans(model)
    return {**{f"{prefix}{pattern}": style for pattern, style in config_plan.items()}, **own_plan}


def _name_without_adapter(name: str, wrapped: str) -> str:
    """Return the name that a module had before peft wrapped the model, which is now the submodule `wrapped`."""
    return name.removeprefix(f"{wrapped}.").removesuffix(".base_layer") if wrapped else name


def _regex(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a `tp_plan` pattern: a part `*` matches a number."""
    parts = (r"\d+" if part == "*" else re.escape(part) for part in pattern.split("."))
    return re.compile(r"\.".join(parts))


def _matches_parameter(model: nn.Module, pattern: str) -> bool:
    matches = _regex(pattern).fullmatch
    return any(matches(name) for name, _ in model.named_parameters(remove_duplicate=False))
