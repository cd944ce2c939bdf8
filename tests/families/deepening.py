"""Deeper models: those of the catalogue with every number of layers multiplied."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

__all__ = ["deepened"]

_COUNTS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"} | {
    "num_encoder_layers",
    "num_decoder_layers",
}


def deepened(model: nn.Module, times: int = 3, seed: int = 0) -> nn.Module:
    """Return a model of the same class and sizes with `times` as many layers; their kinds repeat in the same order."""
    config = copy.deepcopy(model.config)
    _deepen(config, times)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        deeper: nn.Module = type(model)(config)
    return deeper.train()


def _deepen(config: Any, times: int) -> None:
    own = vars(config)
    for inner in [value for value in own.values() if hasattr(value, "to_dict")]:
        _deepen(inner, times)
    counts = {name: value for name, value in own.items() if name in _COUNTS and type(value) is int}
    for name, value in list(own.items()):
        if name in counts or (isinstance(value, list) and len(value) in counts.values()):
            setattr(config, name, value * times)
