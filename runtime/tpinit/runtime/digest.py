"""Digests of tensors, so that ranks can compare what they hold without sending it."""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional
from tpinit.runtime.errors import PlanError

__all__ = ["digest", "digest_inputs", "digest_model"]


def digest(tensor: torch.Tensor) -> str:
    """Return hex digits that depend on every byte, and the shape and the dtype. Any device, any layout.

    Of tensors on one kind of device: on a GPU the numbers are mixed where they are, and not by the same formula.
    """
    here = tensor.detach().contiguous()
    code = _on_host(here) if here.device.type == "cpu" else _on_device(here)
    return f"{code} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _on_host(tensor: torch.Tensor) -> str:
    """A checksum that depends on the order, and a sum of all words: together as fast as memory is read."""
    size = tensor.numel() * tensor.element_size()
    if not size:
        return "0"
    crc = zlib.crc32((ctypes.c_char * size).from_address(tensor.data_ptr()))
    raw = tensor.reshape(-1).view(torch.uint8)
    total = int(raw[: size - size % 8].view(torch.int64).sum()) & (1 << 64) - 1 if size >= 8 else 0
    return f"{crc:08x}{total:016x}"


def _on_device(tensor: torch.Tensor) -> str:
    raw = tensor.reshape(-1).view(torch.uint8)
    words = functional.pad(raw, (0, -raw.numel() % 8)).view(torch.int64)
    # Each word is mixed with its place before the sum, so that order counts. int64 arithmetic wraps around.
    place = torch.arange(1, words.numel() + 1, dtype=torch.int64, device=words.device) * 0x2545F4914F6CDD1D
    mixed = (words ^ place) * 0x369DEA0F31A53F85
    mixed = (mixed ^ (mixed >> 32)) * 0x27D4EB2F165667C5
    return f"{int((mixed ^ (mixed >> 29)).sum()) & (1 << 64) - 1:016x}"


def digest_model(model: nn.Module) -> dict[str, object]:
    """Return the digest of every parameter and buffer, by name: equal on all ranks before a model is cut.

    Raises PlanError for parameters on the meta device, which hold nothing.
    """
    away = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if away:
        raise PlanError(
            f"{away[0]}{f' and {len(away) - 1} more' if len(away) > 1 else ''}: on the meta device; materialise the "
            "weights before initialize, or read them with from_pretrained",
            away,
        )
    fields: dict[str, object] = {f"model.{name}": digest(tensor) for name, tensor in model.named_parameters()}
    fields.update({f"model.{name} (buffer)": digest(tensor) for name, tensor in model.named_buffers()})
    fields["model.trainable"] = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    fields["model.training"] = model.training
    return fields


def digest_inputs(args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
    """Return the digest of every tensor among a forward's arguments, by the argument's name or place."""
    named = {f"argument {place}": value for place, value in enumerate(args)} | dict(kwargs)
    return {f"input {name}": digest(value) for name, value in named.items() if isinstance(value, torch.Tensor)}
