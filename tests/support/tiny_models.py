"""Tiny random models of four families, and token batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    Phi3Config,
    Phi3ForCausalLM,
    Phi3Model,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
)

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, LlamaModel),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, Qwen2Model),
    "mistral": (MistralConfig, MistralForCausalLM, MistralModel),
    "phi3": (Phi3Config, Phi3ForCausalLM, Phi3Model),
}
LAYERS = 2
VOCABULARY = 64
LENGTH = 12


def build(family: str = "llama", base: bool = False, seed: int = 0, **options: Any) -> nn.Module:
    """Return a tiny model with the same random weights in every process."""
    config_class, causal, plain = FAMILIES[family]
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "attn_implementation": "eager",
        "use_cache": False,
        "pad_token_id": None,
        "initializer_range": 0.06,
        **options,
    }
    torch.manual_seed(seed)
    model = (plain if base else causal)(config_class(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.train()


def tokens(seed: int = 0, samples: int = 2) -> torch.Tensor:
    """Return int64 token ids [samples, LENGTH], the same for the same seed."""
    return torch.randint(0, VOCABULARY, (samples, LENGTH), generator=torch.Generator().manual_seed(seed))
