"""Digests of tensors, so that ranks can compare what they hold without sending it."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional
from tpinit.runtime.errors import PlanError

__all__ = ["digest", "digest_inputs", "digest_model"]

_COLUMNS = 256  # words in a row of the table


def digest(tensor: torch.Tensor) -> str:
    """Return hex digits that depend on every byte, and the shape and the dtype. Any device, any layout.

    Of tensors on one kind of device: on a GPU the numbers are mixed where they are, and not by the same formula.
    """
    here = tensor.detach().contiguous()
    code = _on_host(here) if here.device.type == "cpu" else _on_device(here)
    return f"{code} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _on_host(tensor: torch.Tensor) -> str:
    """A hash of the sums of all rows and all columns of the words, laid out as a table, and of the bytes left over.

    The sums are what takes time, as much as memory takes to be read. A word that changes changes two of them, and one
    that moves does too.
    """
    raw = tensor.reshape(-1).view(torch.uint8)
    if raw.storage_offset() % 8:
        raw = raw.clone()  # a table of words must begin at a multiple of their size
    whole = raw.numel() - raw.numel() % (8 * _COLUMNS)
    table = raw[:whole].view(torch.int64).view(-1, _COLUMNS)
    found = hashlib.blake2b(_bytes(raw[whole:]), digest_size=12)
    for dim in (1, 0):
        found.update(_bytes(table.sum(dim)))
    return found.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


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
