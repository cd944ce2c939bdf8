"""Small random models of many families with a batch for each, to compare a sharded model with the unsharded one.

There are two lists. `FAMILIES` is written by hand: models with 12 heads of size 4, which 2, 3 and 4 ranks divide, and
variants (`llama_uneven`, `falcon_rw`) with special shapes or wiring. `causal_models()` has every causal language model
of the installed transformers, shrunk by rules; this module, run as a program, prints a table of them.

Without a rotation, the bias of a key adds the same value to every score of a query, so its exact gradient is zero and
the computed one is rounding noise (`VANISHING_GRADIENTS`): compare gradients relative to the largest of the model.

Put the folder `tests` on `sys.path` and import `families.catalogue`; it needs torch and transformers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from families.causal import UNBUILDABLE, batch_causal, build_causal, causal_models, loss_causal, main
from families.drawing import generator, quiet, redraw, tokens

__all__ = [
    "FAMILIES",
    "UNBUILDABLE",
    "VANISHING_GRADIENTS",
    "ModelFamily",
    "batch",
    "batch_causal",
    "build",
    "build_causal",
    "causal_models",
    "loss",
    "loss_causal",
]

AUTO_CLASSES = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "image": "AutoModelForImageClassification",
    "contrast": "AutoModel",
    "speech": "AutoModelForSpeechSeq2Seq",
}

# Suffixes of the names of parameters whose exact gradient is zero (in a fused projection: partly zero).
VANISHING_GRADIENTS = ("k_proj.bias", "key.bias")

ModelSettings = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """How to build one small model: transformers' model type, its task (`kind`), and its config settings."""

    model_type: str
    kind: str  # a key of AUTO_CLASSES
    settings: ModelSettings


def _causal(model_type: str, base: ModelSettings, **settings: Any) -> ModelFamily:
    return ModelFamily(model_type, "causal", {**base, **settings})


BASE: ModelSettings = {"vocab_size": 96, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 12}
IDS: ModelSettings = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER: ModelSettings = {**BASE, **IDS, "intermediate_size": 96, "max_position_embeddings": 64}
FULL: ModelSettings = {**DECODER, "num_key_value_heads": 12}
GROUPED: ModelSettings = {**DECODER, "num_key_value_heads": 6}
HALF_ROPE: ModelSettings = {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.5}
PLAIN_ROPE: ModelSettings = {"rope_theta": 10000.0, "rope_type": "default"}
SLIDING: ModelSettings = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
MOE: ModelSettings = {
    **GROUPED,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "output_router_logits": False,
}
MLA: ModelSettings = {
    **FULL,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
GPT2: ModelSettings = {
    **IDS,
    "vocab_size": 96,
    "n_positions": 64,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 12,
    "n_inner": 96,
}
BLOOM: ModelSettings = {**IDS, "vocab_size": 96, "hidden_size": 48, "n_layer": 2, "n_head": 12}
FALCON: ModelSettings = {**BASE, **IDS, "max_position_embeddings": 64, "ffn_hidden_size": 96}
ENCODER: ModelSettings = {**DECODER, "type_vocab_size": 2}
T5: ModelSettings = {
    "vocab_size": 96,
    "d_model": 48,
    "d_kv": 4,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 12,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
IMAGE: ModelSettings = {"image_size": 16, "patch_size": 4, "num_channels": 3}
VISION: ModelSettings = {
    k: v for k, v in DECODER.items() if k not in {"vocab_size", "max_position_embeddings", *IDS}
} | IMAGE
WHISPER: ModelSettings = {
    **IDS,
    "vocab_size": 96,
    "num_mel_bins": 16,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_source_positions": 16,
    "max_target_positions": 64,
    "decoder_start_token_id": 3,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}

FAMILIES: dict[str, ModelFamily] = {
    "llama": _causal("llama", GROUPED),
    "llama_full": _causal("llama", FULL),
    "llama_kv2": _causal("llama", DECODER, num_key_value_heads=2),
    "llama_kv1": _causal("llama", DECODER, num_key_value_heads=1),
    "llama_tied": _causal("llama", GROUPED, tie_word_embeddings=True),
    "llama_bias": _causal("llama", GROUPED, attention_bias=True, mlp_bias=True),
    "llama_vocab101": _causal("llama", GROUPED, vocab_size=101),
    # No size is divisible by 2, 3 or 4: 7 heads of size 4 (28 of hidden size 35), intermediate 97, 101 tokens.
    "llama_uneven": _causal(
        "llama",
        DECODER,
        hidden_size=35,
        head_dim=4,
        num_attention_heads=7,
        num_key_value_heads=7,
        intermediate_size=97,
        vocab_size=101,
    ),
    # 10 query heads in 5 groups; 5 is not divisible by 2, 3 or 4 either.
    "llama_uneven_groups": _causal(
        "llama", DECODER, hidden_size=40, head_dim=4, num_attention_heads=10, num_key_value_heads=5
    ),
    "mistral": _causal("mistral", GROUPED, sliding_window=6),
    "qwen2": _causal("qwen2", GROUPED),
    "qwen3": _causal("qwen3", GROUPED, head_dim=4),
    "qwen2_moe": _causal("qwen2_moe", MOE, shared_expert_intermediate_size=48),
    "qwen3_moe": _causal("qwen3_moe", MOE, head_dim=4, norm_topk_prob=True),
    "mixtral": _causal("mixtral", GROUPED, num_local_experts=4, num_experts_per_tok=2, output_router_logits=False),
    # Experts with biases: output biases are added once over all ranks, and each rank has a partial gradient of them.
    "gpt_oss": _causal(
        "gpt_oss",
        GROUPED,
        head_dim=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters=PLAIN_ROPE,
        **SLIDING,
    ),
    # Every token passes every expert, with a weight applied before the expert.
    "llama4": _causal("llama4_text", GROUPED, head_dim=4, intermediate_size_mlp=96, num_local_experts=4),
    # All experts of a layer are stacked in one matrix.
    "dbrx": _causal(
        "dbrx",
        {**IDS, "vocab_size": 96, "d_model": 48, "n_heads": 12, "n_layers": 2, "max_seq_len": 64},
        attn_config={"kv_n_heads": 6, "clip_qkv": 8.0, "rope_theta": 10000.0},
        ffn_config={"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 48},
    ),
    "gemma": _causal("gemma", GROUPED, head_dim=4),
    "gemma2": _causal("gemma2", GROUPED, head_dim=4, query_pre_attn_scalar=4, **SLIDING),
    "gemma3": _causal("gemma3_text", GROUPED, head_dim=4, query_pre_attn_scalar=4, **SLIDING),
    "phi": _causal("phi", FULL, rope_parameters=HALF_ROPE),
    "phi_qk_layernorm": _causal("phi", FULL, rope_parameters=HALF_ROPE, qk_layernorm=True),
    "phi3": _causal("phi3", GROUPED, original_max_position_embeddings=64),
    "gpt2": _causal("gpt2", GPT2),
    "gpt_neox": _causal("gpt_neox", DECODER, rope_parameters=HALF_ROPE),
    "gpt_neox_serial": _causal("gpt_neox", DECODER, rope_parameters=HALF_ROPE, use_parallel_residual=False),
    "gptj": _causal("gptj", GPT2, rotary_dim=2),
    "opt": _causal("opt", BASE, **IDS, ffn_dim=96, max_position_embeddings=64, word_embed_proj_dim=48),
    "opt_projected": _causal(
        "opt",
        BASE,
        **IDS,
        ffn_dim=96,
        max_position_embeddings=64,
        word_embed_proj_dim=24,
        do_layer_norm_before=False,
    ),
    "bloom": _causal("bloom", BLOOM),
    # One kv head for all query heads, attention in parallel with the MLP.
    "falcon": _causal(
        "falcon", FALCON, multi_query=True, parallel_attn=True, new_decoder_architecture=False, bias=False
    ),
    # One kv head per query head, ALiBi, attention before the MLP, biases.
    "falcon_rw": _causal(
        "falcon", FALCON, multi_query=False, parallel_attn=False, new_decoder_architecture=False, alibi=True, bias=True
    ),
    "falcon_new": _causal("falcon", FALCON, new_decoder_architecture=True, num_kv_heads=6, bias=False),
    "mpt": _causal(
        "mpt",
        {"vocab_size": 96, "d_model": 48, "n_heads": 12, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 64},
    ),
    "starcoder2": _causal("starcoder2", GROUPED, use_bias=True),
    "stablelm": _causal("stablelm", GROUPED, rope_parameters=HALF_ROPE),
    "stablelm_bias": _causal("stablelm", GROUPED, rope_parameters=HALF_ROPE, use_qkv_bias=True),
    "stablelm_qk_layernorm": _causal("stablelm", GROUPED, rope_parameters=HALF_ROPE, qk_layernorm=True),
    "stablelm_parallel": _causal("stablelm", GROUPED, rope_parameters=HALF_ROPE, use_parallel_residual=True),
    "olmo": _causal("olmo", GROUPED, clip_qkv=1.0),
    "olmo2": _causal("olmo2", GROUPED),
    "cohere": _causal("cohere", GROUPED, logit_scale=0.5),
    "cohere_qk_norm": _causal("cohere", GROUPED, logit_scale=0.5, use_qk_norm=True),
    "cohere2": _causal("cohere2", GROUPED, logit_scale=0.5, **SLIDING),
    "granite": _causal(
        "granite",
        GROUPED,
        embedding_multiplier=3.0,
        logits_scaling=2.0,
        residual_multiplier=0.5,
        attention_multiplier=0.5,
    ),
    "glm": _causal("glm", GROUPED, head_dim=4, rope_parameters=HALF_ROPE),
    "glm4": _causal("glm4", GROUPED, head_dim=4, rope_parameters=HALF_ROPE),
    "internlm3": _causal("internlm3", GROUPED, head_dim=4, attention_bias=True, mlp_bias=True),
    "deepseek_v2": _causal("deepseek_v2", MLA),
    "deepseek_v2_lite": _causal("deepseek_v2", MLA, q_lora_rank=None),
    "deepseek_v3": _causal("deepseek_v3", MLA, n_group=2, topk_group=1),
    "bert": ModelFamily("bert", "masked", ENCODER),
    "roberta": ModelFamily("roberta", "masked", {**ENCODER, "pad_token_id": 1, "bos_token_id": 0}),
    "t5": ModelFamily("t5", "seq2seq", {**T5, "feed_forward_proj": "relu"}),
    "t5_gated": ModelFamily("t5", "seq2seq", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "vit": ModelFamily("vit", "image", {**VISION, "num_labels": 12}),
    "clip": ModelFamily(
        "clip",
        "contrast",
        {"text_config": {**DECODER, "projection_dim": 24}, "vision_config": {**VISION, "projection_dim": 24}}
        | {"projection_dim": 24},
    ),
    "whisper": ModelFamily("whisper", "speech", WHISPER),
}


def build(name: str, seed: int = 0, **overrides: Any) -> nn.Module:
    """Return the small fp32 model of family `name`, its parameters drawn from `seed`, in training mode without dropout.

    `overrides` are merged into the config settings (dicts recursively by one level), for dropout or another shape.
    They may also hold `attn_implementation` and `experts_implementation`, which default to "eager".
    """
    import transformers

    family = FAMILIES[name]
    backends = {key: overrides.pop(key, "eager") for key in ("attn_implementation", "experts_implementation")}
    settings = copy.deepcopy(family.settings)
    for key, value in overrides.items():
        inner = settings.get(key)
        settings[key] = {**inner, **value} if isinstance(inner, dict) and isinstance(value, dict) else value
    settings.setdefault("use_cache", False)
    config = transformers.AutoConfig.for_model(family.model_type, **settings)
    quiet(config, frozenset(overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for vectors, which keep their initial values
        auto = getattr(transformers, AUTO_CLASSES[family.kind])
        model: nn.Module = auto.from_config(config, dtype=torch.float32, **backends)
    redraw(model, seed)
    return model.train()


def batch(
    name: str, model: nn.Module, seed: int, rows: int = 2, length: int = 12, ignored: int = 0
) -> dict[str, Tensor]:
    """Return inputs and labels of `rows` examples of `length` tokens; the last `ignored` labels per row are -100."""
    kind = FAMILIES[name].kind
    config: Any = model.config
    if kind in {"image", "contrast"}:
        vision = getattr(config, "vision_config", config)
        side = vision.image_size
        pixels = torch.randn(rows, vision.num_channels, side, side, generator=generator(seed, "pixel_values"))
        if kind == "image":
            return {"pixel_values": pixels, "labels": _labels(config.num_labels, rows, seed)}
        ids = tokens(config.text_config.vocab_size, rows, length, seed)
        ids[:, -1] = config.text_config.eos_token_id  # CLIP pools the text at this token
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    labels = tokens(config.vocab_size, rows, length, seed, "labels")
    if kind == "speech":
        bins, frames = config.num_mel_bins, 2 * config.max_source_positions
        inputs = {"input_features": torch.randn(rows, bins, frames, generator=generator(seed, "input_features"))}
    else:
        inputs = {"input_ids": tokens(config.vocab_size, rows, length, seed)}
    if kind == "causal":
        labels = inputs["input_ids"].clone()
    if ignored:
        labels[:, -ignored:] = -100
    return {**inputs, "labels": labels}


def _labels(count: int, rows: int, seed: int) -> Tensor:
    return tokens(count, rows, 1, seed, "labels", first=0).squeeze(1)


def loss(name: str, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the scalar loss of `model` on `batch`: `.loss` of its output, which CLIP computes with `return_loss`."""
    extra = {"return_loss": True} if FAMILIES[name].kind == "contrast" else {}
    value: Tensor = model(**batch, **extra).loss
    return value


if __name__ == "__main__":
    main()
