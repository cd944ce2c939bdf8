"""A small batch for a model that was never run: what its forward takes, from its own config.

Its numbers are of no interest, only its shapes: the batch is rehearsed on, never trained on.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

__all__ = ["BATCH", "example_inputs", "unwrap_adapters"]

# Sizes that no dimension of a model shares, so that a fold of one dimension into another shows.
BATCH, SEQUENCE = 2, 7


def unwrap_adapters(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the transformers model that adapters (peft) are wrapped around, and its name below; else the model."""
    ask = getattr(model, "get_base_model", None)
    inner = ask() if callable(ask) else None
    if isinstance(inner, nn.Module):
        for name, module in model.named_modules():
            if module is inner:
                return name, inner
    return "", model


def example_inputs(model: nn.Module, device: torch.device) -> list[dict[str, Any]]:
    """Return keyword arguments for one forward of a transformers model, the fullest first; none where not known.

    Token ids [2, 7], pixel values [2, channels, height, width], input features [2, bins, frames], and what an
    encoder-decoder needs besides. Caches are off.
    """
    _, model = unwrap_adapters(model)
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(model, "forward"):
        return []
    names = inspect.signature(model.forward).parameters
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in names.values())
    given: dict[str, Any] = {}
    ids = torch.arange(BATCH * SEQUENCE, device=device).reshape(BATCH, SEQUENCE)
    vocabulary = _vocabulary(config)
    if "input_ids" in names and vocabulary:
        given["input_ids"] = ids % min(vocabulary, 11)
    if "pixel_values" in names:
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 0)
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        channels = getattr(vision, "num_channels", 3)
        given["pixel_values"] = torch.linspace(-1, 1, BATCH * channels * height * width, device=device).reshape(
            BATCH, channels, height, width
        )
    if "input_features" in names:
        bins, frames = getattr(config, "num_mel_bins", 80), 2 * getattr(config, "max_source_positions", 1500)
        given["input_features"] = torch.linspace(-1, 1, BATCH * bins * frames, device=device).reshape(
            BATCH, bins, frames
        )
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        given["decoder_input_ids"] = ids % 11
    if not given:
        return []
    plain = {"use_cache": False} if "use_cache" in names or (takes_all and hasattr(config, "use_cache")) else {}
    found = [{**given, **plain}]
    if "input_ids" in given and len(given) > 1 and "decoder_input_ids" not in given:
        found.append({"input_ids": given["input_ids"], **plain})  # pictures and sounds may be left out
    books = getattr(config, "num_codebooks", 0) or getattr(getattr(config, "decoder", None), "num_codebooks", 0)
    if "input_ids" in given and books:
        found.append({"input_ids": given["input_ids"].repeat(books, 1), **plain})
    return found


def _vocabulary(config: Any) -> int:
    for one in (config, getattr(config, "text_config", None)):
        size = getattr(one, "vocab_size", None)
        if isinstance(size, int):
            return size
    return 0
