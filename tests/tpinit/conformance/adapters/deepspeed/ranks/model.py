"""The tiny model that every case trains, its data, and its training without parallelism."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

__all__ = ["LEARNING_RATE", "Dense", "batch", "build"]

LEARNING_RATE = 0.5
_LENGTH = 8
_VOCABULARY = 32


def build(seed: int = 0) -> nn.Module:
    """Return a one-layer fp32 Llama with the same random weights in every process, divisible over 2 and 4 ranks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": _VOCABULARY,
        "max_position_embeddings": 32,
        "initializer_range": 0.15,
        "attn_implementation": "eager",
        "use_cache": False,
        "tie_word_embeddings": False,
    }
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**settings))
    return model.train()


def batch(step: int, index: int) -> dict[str, torch.Tensor]:
    """Return one sample, `input_ids` and `labels` [1, 8] int64, which depends on the step and the data index."""
    generator = torch.Generator().manual_seed(1000 * (step + 1) + index)
    tokens = torch.randint(0, _VOCABULARY, (1, _LENGTH), generator=generator)
    return {"input_ids": tokens, "labels": tokens}


class Dense:
    """The unsharded fp32 model, trained by plain SGD on the mean loss over all data: the reference for the weights."""

    def __init__(self, template: nn.Module) -> None:
        self.model = copy.deepcopy(template).float()
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE)

    def loss(self, inputs: dict[str, torch.Tensor]) -> float:
        """Return the loss of one batch under the present weights."""
        with torch.no_grad():
            return float(self.model(**inputs).loss)

    def step(self, batches: Sequence[dict[str, torch.Tensor]]) -> None:
        """Do one update on the mean loss of these batches."""
        loss: Any = sum(self.model(**inputs).loss for inputs in batches) / len(batches)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the weights by name."""
        return {name: tensor.detach() for name, tensor in self.model.named_parameters()}
