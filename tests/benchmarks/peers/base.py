"""The interface of a peer, and what all peers share: the model on disk, its batches, the optimizer."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from benchmarks.sizes import LEARNING_RATE, SEED, Size

__all__ = ["Peer", "Step", "Unavailable", "adamw", "batch_of", "save", "unsharded"]

Step = Callable[[torch.Tensor], torch.Tensor]
"""Forward, backward and update on token ids [batch, sequence]; returns the loss of the whole batch."""


class Unavailable(Exception):
    """The peer does not support the operation; the text says why."""


class Peer(abc.ABC):
    """One implementation, in one rank."""

    @abc.abstractmethod
    def versions(self) -> dict[str, str]:
        """Return the versions of the measured packages by name."""

    @abc.abstractmethod
    def from_model(self, model: nn.Module) -> Step:
        """Shard a model that is in memory and return its training step. Raises Unavailable."""

    def let_go(self) -> None:  # noqa: B027  # most peers have nothing to release
        """Release what the last model, which no longer exists, left behind."""

    def from_files(self, folder: str) -> Step:
        """Load only this rank's slices from safetensors and return the training step. Raises Unavailable."""
        raise Unavailable("reads the whole model on every rank")

    def save_state(self, folder: str) -> None:
        """Save model and optimizer, so that `load_state` goes on with them. Raises Unavailable."""
        raise Unavailable("has no checkpoint of a run")

    def load_state(self, folder: str) -> None:
        """Load what `save_state` saved. Raises Unavailable."""
        raise Unavailable("has no checkpoint of a run")

    def export(self, folder: str) -> None:
        """Write the whole model as a directory of transformers. Raises Unavailable."""
        raise Unavailable("writes no directory of transformers")


def save(size: Size, folder: str) -> int:
    """Write the seeded model as safetensors into `folder`, and return its number of parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocab,
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            max_position_embeddings=size.sequence,
            use_cache=False,
            tie_word_embeddings=False,
        )
    )
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def unsharded(folder: str) -> nn.Module:
    """Load the unsharded model in fp32, in training mode."""
    from transformers import LlamaForCausalLM

    model: nn.Module = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.train()


def batch_of(size: Size, step: int) -> torch.Tensor:
    """Return the token ids [batch, sequence] of a step; two batches alternate, so that training lowers the loss."""
    generator = torch.Generator().manual_seed(SEED + step % 2)
    return torch.randint(size.vocab, (size.batch, size.sequence), generator=generator)


def adamw(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """Return the optimizer that every peer uses."""
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)
