"""The presets: which layers of well-known models are sharded, by the names of their parameters.

A preset does not describe how a fused weight is laid out or which attributes of a block must change: the trace and the
dry run find both in the model.
"""

from __future__ import annotations

from tpinit.reference.spellings import nearest, show
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.requests.layer_specs import Spec

__all__ = ["PRESETS", "preset_specs"]

_QKV = ("column", r".*\.self_attn\.(q|k|v)_proj\.weight$")
_OUT = ("row", r".*\.self_attn\.o_proj\.weight$")
_GATED_MLP = (
    ("column", r".*\.mlp\.(gate|up)_proj\.weight$"),
    ("row", r".*\.mlp\.down_proj\.weight$"),
)
_GPT = (
    ("column", r".*\.self_attention\.query_key_value\.weight$"),
    ("row", r".*\.self_attention\.dense\.weight$"),
    ("column", r".*\.mlp\.dense_h_to_4h\.weight$"),
    ("row", r".*\.mlp\.dense_4h_to_h\.weight$"),
)
# transformers 5 stores all experts of a layer in one tensor.
_STACKED_EXPERTS = (("column", r".*\.experts\.gate_up_proj$"), ("row", r".*\.experts\.down_proj$"))

PRESETS: dict[str, tuple[tuple[str, str], ...]] = {
    "llama": (_QKV, _OUT, *_GATED_MLP),
    "bloom": _GPT,
    "chatglm": _GPT,
    "mixtral": (
        _QKV,
        _OUT,
        ("column", r".*\.experts\.\d+\.w[13]\.weight$"),
        ("row", r".*\.experts\.\d+\.w2\.weight$"),
        *_STACKED_EXPERTS,
        ("skip", r".*\.(block_sparse_moe|mlp)\.gate\.weight$"),
    ),
    "deepseek_v2": (
        ("skip", r".*\.self_attn\.(q_a_proj|kv_a_proj_with_mqa)\.weight$"),
        ("column", r".*\.self_attn\.(q_proj|q_b_proj|kv_b_proj)\.weight$"),
        _OUT,
        *_GATED_MLP,
        ("column", r".*\.mlp\.(experts\.\d+|shared_experts)\.(gate|up)_proj\.weight$"),
        ("row", r".*\.mlp\.(experts\.\d+|shared_experts)\.down_proj\.weight$"),
        *_STACKED_EXPERTS,
        ("skip", r".*\.mlp\.gate\.weight$"),
    ),
    "qwen2": (_QKV, _OUT, *_GATED_MLP),
    "phi3": (
        ("column", r".*\.self_attn\.qkv_proj\.weight$"),
        _OUT,
        ("column", r".*\.mlp\.gate_up_proj\.weight$"),
        ("row", r".*\.mlp\.down_proj\.weight$"),
    ),
}
"""For each preset, the pairs of a partition type and a pattern that matches the full name of a parameter."""


def preset_specs(name: str) -> tuple[Spec, ...]:
    """Return the specs of a preset, named in any case. Raises PlanError, with the legal names, for an unknown one."""
    rules = PRESETS.get(name.lower()) if isinstance(name, str) else None
    if rules is None:
        near = nearest(name, PRESETS)
        hint = f"; did you mean {near}?" if near else ""
        raise PlanError(f"preset_model = {show(name)} is not a preset{hint}; the presets are {', '.join(PRESETS)}")
    location = f"preset_model {name.lower()}"
    return tuple(Spec((pattern,), partition_type, location=location) for partition_type, pattern in rules)
