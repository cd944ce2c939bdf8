"""A small batch for a transformers model, built from the signature of its forward and from its config.

Only the shapes of the batch matter: the planner traces the model on it and never trains on it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["BATCH", "example_inputs", "unwrap_adapters"]

# Sizes that no dimension of a model has, so that a tensor's shape shows which dimensions are batch and tokens.
BATCH, SEQUENCE = 2, 7


def unwrap_adapters(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the name and the module of the transformers model inside a peft model; ("", model) for any other model."""
    get_base_model = getattr(model, "get_base_model", None)
    base_model = get_base_model() if callable(get_base_model) else None
    if isinstance(base_model, nn.Module):
        for name, module in model.named_modules():
            if module is base_model:
                return name, base_model
    return "", model


def example_inputs(model: nn.Module, device: torch.device) -> list[dict[str, Any]]:
    """Return batches, as keyword arguments of one forward, in the order to try; empty for a model without a config.

    Token ids [2, 7], pixel values [2, channels, height, width], input features [2, bins, frames], and the token ids of
    a decoder. The first batch has everything that the forward takes; the next ones leave out pictures and sound, or
    have one row of ids for each codebook. Caches are off.
    """
    _, model = unwrap_adapters(model)
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(model, "forward"):
        return []
    parameters = _parameters(model)
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    batch = _full_batch(config, parameters, device)
    if not batch:
        return []
    has_cache = "use_cache" in parameters or (takes_any and hasattr(config, "use_cache"))
    options = {"use_cache": False} if has_cache else {}
    batches = [{**batch, **options}]
    if "input_ids" in batch and len(batch) > 1 and "decoder_input_ids" not in batch:
        batches.append({"input_ids": batch["input_ids"], **options})
    codebooks = getattr(config, "num_codebooks", 0) or getattr(getattr(config, "decoder", None), "num_codebooks", 0)
    if "input_ids" in batch and codebooks:
        batches.append({"input_ids": batch["input_ids"].repeat(codebooks, 1), **options})
    return batches


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a model's forward, and those of the forwards that one with `**kwargs` passes them to."""
    found: dict[str, inspect.Parameter] = {}
    of_classes = [vars(base)["forward"] for base in type(model).__mro__ if "forward" in vars(base)]
    for forward in (model.forward, *of_classes):
        own = inspect.signature(forward).parameters
        found = {**own, **found}
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in own.values()):
            break
    return found


def _full_batch(config: Any, parameters: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a tensor for every input that the forward takes, by the names of its `parameters`."""
    batch: dict[str, Any] = {}
    ids = torch.arange(BATCH * SEQUENCE, device=device).reshape(BATCH, SEQUENCE)
    vocab_size = _vocab_size(config)
    if "input_ids" in parameters and vocab_size:
        batch["input_ids"] = ids % min(vocab_size, 11)
    if "pixel_values" in parameters:
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 0)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        shape = (BATCH, getattr(vision, "num_channels", 3), height, width)
        batch["pixel_values"] = _ramp(shape, device)
    if "input_features" in parameters:
        bins, frames = getattr(config, "num_mel_bins", 80), 2 * getattr(config, "max_source_positions", 1500)
        batch["input_features"] = _ramp((BATCH, bins, frames), device)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in parameters:
        batch["decoder_input_ids"] = ids % 11
    return batch


def _ramp(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return a tensor whose elements rise evenly from -1 to 1."""
    return torch.linspace(-1, 1, math.prod(shape), device=device).reshape(shape)


def _vocab_size(config: Any) -> int:
    """Return the size of the vocabulary, of the text model if there are several; 0 if the config has none."""
    for candidate in (config, getattr(config, "text_config", None)):
        size = getattr(candidate, "vocab_size", None)
        if isinstance(size, int):
            return size
    return 0
