"""Every causal language model of the installed transformers, shrunk by rules: two layers, twelve heads of size 4.

The rules go by the names of settings (`hidden_size`, `n_embd`, ...) in a config and its nested configs; `OVERRIDES` has
further settings of single types. `UNBUILDABLE` lists the types that can't be built or run small, with the reason.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from families.drawing import generator, quiet, redraw, tokens

# The names of settings by their small value.
RULES: dict[int, str] = {
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers"
    " num_decoder_layers num_experts_per_tok num_experts_per_token moe_k moe_topk moe_top_k top_k_experts"
    " type_vocab_size rotary_dim zero_expert_num eos_token_id",
    12: "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads"
    " num_encoder_attention_heads num_decoder_attention_heads linear_num_value_heads linear_num_heads mamba_n_heads"
    " mamba_num_heads",
    6: "num_key_value_heads num_kv_heads kv_n_heads linear_num_key_heads sliding_window window_size",
    4: "head_dim d_kv kv_channels dim_head attention_head_dim attention_head_size v_head_dim qk_rope_head_dim"
    " qk_nope_head_dim global_head_dim swa_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim"
    " index_head_dim num_experts num_local_experts n_routed_experts moe_num_experts n_groups index_n_heads index_topk"
    " o_groups mamba_chunk_size chunk_size local_attn_chunk_length lsh_attn_chunk_length hidden_size_per_layer_input",
    1: "n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group num_expert_group"
    " first_k_dense_replace num_dense_layers bos_token_id",
    8: "mamba_d_head mamba_head_dim mamba_d_state state_size ssm_state_size laurel_rank o_lora_rank hc_lowrank",
    16: "kv_lora_rank image_size",
    24: "dim_model_base q_lora_rank moe_intermediate_size expert_ffn_hidden_size",
    48: "hidden_size d_model n_embd dim emb_dim embed_dim embedding_size hidden_size_global pronunciation_embed_dim"
    " shape_embed_dim shared_expert_intermediate_size shared_intermediate_size moe_shared_expert_intermediate_size"
    " shared_experts_intermediate_size input_embedding_size output_embedding_size adapter_in_dim adapter_out_dim"
    " adapter_input_size",
    64: "max_position_embeddings n_positions n_ctx max_seq_len original_max_position_embeddings",
    96: "vocab_size intermediate_size n_inner ffn_dim d_ff dff dim_ff d_inner ffn_hidden_size encoder_ffn_dim"
    " decoder_ffn_dim feed_forward_size dense_intermediate_size mamba_d_ssm vocab_size_per_layer_input"
    " pronunciation_vocab_size shape_vocab_size",
    0: "pad_token_id",
    3: "decoder_start_token_id",
}
SWITCHES = {"is_decoder": True, "use_cache": False, "output_router_logits": False}
SIZES = {name: size for size, names in RULES.items() for name in names.split()} | SWITCHES
# Further settings by type. PART names the nested config that the class takes instead of the whole one.
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
HYBRID = ["linear_attention", "full_attention"]
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 4}},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note": {"vision_config": {"mlp_layer_types": ["dense", "dense"], "per_layer_config": {}}},
    "dots3_note_text": {"head_dim": 8, "per_layer_config": {1: {"kv_lora_rank": 8}}},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "intermediate_size": [96, 96],
        "activation_sparsity_pattern": [0.5, 0.0],
        "num_kv_shared_layers": 0,
    },
    "gemma4_text": {"global_head_dim": 8},
    "gemma4_unified_text": {"global_head_dim": 8},
    "git": {"vision_config": {"patch_size": 8}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": HYBRID},
    "hunyuan_v1_dense": {"head_dim": 4},
    "hunyuan_v1_moe": {"head_dim": 4, "num_experts": 4, "moe_topk": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "got_ocr2": {"vision_config": {"mlp_dim": 96, "output_channels": 16, "window_size": 2, "global_attn_indexes": [1]}},
    "mamba2": {"head_dim": 8},
    "ministral": {"head_dim": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "nemotron": {"num_key_value_heads": 6},
    "phi4_multimodal": {
        "vision_config": {"crop_size": 16, "patch_size": 4},
        "audio_config": {"num_blocks": 2, "ext_pw_out_channel": 48, "depthwise_separable_out_channel": 48}
        | {"nemo_conv_channels": 48, "input_size": 16, "bias_max_distance": 16},
    },
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 4}
    | {"indexer_budget": 4, "indexer_compress_ratio": 2},
    "reformer": {"attn_layers": ["local", "lsh"], "axial_pos_embds": False, "num_buckets": 2, "hash_seed": 0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
PART = {"musicgen": "decoder", "musicgen_melody": "decoder"}
DRAFTS = "drafts for another model: it reads that model's keys and values, and computes no loss"
UNBUILDABLE: dict[str, str] = {
    "gemma3n": "its vision tower needs the packages timm and pillow",
    "gemma4_assistant": DRAFTS,
    "gemma4_unified_assistant": DRAFTS,
}


def class_names() -> dict[str, str]:
    """Return the model types of the release's causal language models with the names of their classes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def causal_models() -> list[str]:
    """Return the types that `build_causal` builds: all of the release except `UNBUILDABLE`."""
    return [name for name in class_names() if name not in UNBUILDABLE]


def build_causal(model_type: str, seed: int = 0, **overrides: Any) -> nn.Module:
    """Return a small fp32 model of the type, its parameters drawn from `seed`, in training mode without dropout.

    Raises ValueError, with the reason, for a type in `UNBUILDABLE`.
    """
    import transformers

    if model_type in UNBUILDABLE:
        raise ValueError(f"{model_type}: {UNBUILDABLE[model_type]}")
    backends = {key: overrides.pop(key, "eager") for key in ("attn_implementation", "experts_implementation")}
    default = transformers.AutoConfig.for_model(model_type)
    settings = _merged(_shrunk(default), _special(default), overrides)
    config = transformers.AutoConfig.for_model(model_type, **settings)
    config = getattr(config, PART[model_type]) if model_type in PART else config
    quiet(config, frozenset(overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for vectors, which keep their initial values
        auto = transformers.AutoModelForCausalLM
        if model_type in PART:
            auto = getattr(transformers, class_names()[model_type])
            model: nn.Module = auto._from_config(config, dtype=torch.float32, **backends)
        else:
            model = auto.from_config(config, dtype=torch.float32, **backends)
    redraw(model, seed)
    return model.train()


def _merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Merge settings recursively; later ones override earlier ones."""
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            old = merged.get(key)
            merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _special(config: Any) -> dict[str, Any]:
    """Return the OVERRIDES of a config's type and of the types of its nested configs."""
    parts = {name: _special(value) for name, value in vars(config).items() if hasattr(value, "to_dict")}
    return _merged({name: part for name, part in parts.items() if part}, OVERRIDES.get(config.model_type, {}))


def _shrunk(config: Any) -> dict[str, Any]:
    """Return the settings of a small config of the same class, from the names of its settings."""
    small: dict[str, Any] = {}
    latent = vars(config).get("kv_lora_rank") is not None  # with latent attention every head has its own keys
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            small[name] = _shrunk(value)
        elif name in SIZES and value is not None and not isinstance(value, list | dict):
            small[name] = 12 if latent and name == "num_key_value_heads" else SIZES[name]
        elif name == "layer_types" and value:
            small[name] = _two_kinds(value)
        elif name == "rope_parameters" and value:
            small[name] = _wide_rope(value)
    return small


def _two_kinds(layer_types: list[str]) -> list[str]:
    """Return two kinds of layers, different ones if possible, and full attention as the second one if it occurs."""
    kinds = sorted(set(layer_types), key=layer_types.index)
    kinds.sort(key=lambda kind: kind == "full_attention")
    return [kinds[0], kinds[-1]]


def _wide_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Return rope settings that rotate at least half of a head: of a head of size 4, a quarter can't be rotated."""
    if any(isinstance(value, dict) for value in rope.values()):
        return {key: _wide_rope(value) if isinstance(value, dict) else value for key, value in rope.items()}
    if rope.get("partial_rotary_factor", 1.0) < 0.5:
        return {**rope, "partial_rotary_factor": 0.5}
    return rope


def batch_causal(model_type: str, model: nn.Module, seed: int, rows: int = 2, length: int = 12) -> dict[str, Tensor]:
    """Return token ids and equal labels, both [rows, length]; some types get another shape or also an image."""
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    if model_type in PART:  # audio: one row of ids per codebook, one column of labels
        ids = tokens(text.vocab_size, rows * text.num_codebooks, length, seed)
        return {"input_ids": ids, "labels": ids.view(rows, text.num_codebooks, length).transpose(1, 2).contiguous()}
    ids = tokens(text.vocab_size, rows, length, seed)
    batch = {"input_ids": ids, "labels": ids.clone()}
    if model_type == "git":  # the text follows an image
        vision = config.vision_config
        shape = (rows, vision.num_channels, vision.image_size, vision.image_size)
        batch["pixel_values"] = torch.randn(shape, generator=generator(seed, "pixel_values"))
    return batch


def loss_causal(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the scalar loss of `model` on `batch`."""
    value: Tensor = model(**batch).loss
    return value


@dataclass(frozen=True, slots=True)
class CausalStep:
    """One training step of the small model of a type, or the reason why it fails."""

    model_type: str
    class_name: str
    reason: str = ""
    parameters: int = 0
    loss: float = math.nan
    without_gradient: tuple[str, ...] = ()  # e.g. cross-attention without an encoder
    seconds: float = 0.0


def outcome(model_type: str) -> CausalStep:
    """Build the type and run one forward and backward."""
    start = time.perf_counter()
    class_name = class_names()[model_type]
    try:
        model = build_causal(model_type)
        loss = loss_causal(model, batch_causal(model_type, model, 0))
        torch.autograd.backward(loss)
    except Exception as error:  # the table shows any exception as the reason
        reason = UNBUILDABLE.get(model_type) or f"{type(error).__name__}: {error}".splitlines()[0]
        return CausalStep(model_type, class_name, reason)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return CausalStep(
        model_type,
        class_name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        loss=loss.item(),
        without_gradient=tuple(name for name, parameter in trained.items() if parameter.grad is None),
        seconds=time.perf_counter() - start,
    )


def main() -> None:
    """Print a line for every type: class, parameters, parameters without a gradient, loss, seconds; or the reason."""
    built = 0
    for model_type in class_names():
        step = outcome(model_type)
        built += not step.reason
        numbers = f"{step.parameters:8} {len(step.without_gradient):5} {step.loss:7.3f} {step.seconds:5.2f} s"
        sys.stdout.write(f"{step.model_type:26} {step.class_name:42} {step.reason or numbers}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{built} of {len(class_names())} build and train\n")
