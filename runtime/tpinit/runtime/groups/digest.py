"""Digests of tensors: short texts by which ranks compare tensors without sending them."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import nn
from torch.nn import functional
from tpinit.runtime.errors import PlanError
from tpinit.runtime.internals.host_memory import memory_of

__all__ = ["digest", "digest_model", "fold", "raw_bytes"]

_COLUMNS = 256  # 8-byte words in a row
_ROW = 8 * _COLUMNS  # bytes
_CPU_ROWS = 512  # hashed at once: 1 MiB, which stays in a core's cache
_DEVICE_ROWS = 1 << 14  # 32 MiB: enough to keep a GPU busy, small beside its memory


def digest(tensor: torch.Tensor) -> str:
    """Return a text that is equal for equal tensors, in any memory layout: 16 hex digits, the shape and the dtype.

    Every changed word changes it, and any other change is missed with a probability of about 2^-33 (`fold`). It is the
    same on every kind of device.
    """
    code = int(fold(tensor)) & ((1 << 64) - 1)
    return f"{code:016x} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def fold(tensor: torch.Tensor) -> torch.Tensor:
    """Return a 64-bit hash of the bytes of a tensor and their places, an int64 scalar on its device.

    The memory is read as rows of `_COLUMNS` 8-byte words. A row's hash is the multilinear one of the words' halves: the
    sum of all 32-bit halves, each times an odd number of its own, modulo 2^64. A change of one half changes it, two
    halves that swap places or change by equal or opposite amounts do too, and any other pattern is missed with a
    probability of about 2^-33. The hashes of the rows are then hashed as a tensor, until one is left. Takes memory for
    `_CPU_ROWS` or `_DEVICE_ROWS` rows, twice or three times.
    """
    hashes = _tensor_hashes(tensor.detach())
    while hashes.numel() > 1:
        hashes = _row_hashes(hashes.view(torch.uint8))
    return hashes[0]


def _tensor_hashes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the hashes of a tensor's rows. A tensor that is not contiguous is copied part by part."""
    if tensor.is_contiguous() or not tensor.numel():
        return _row_hashes(_bytes(tensor))
    tensor = tensor.squeeze()
    length = tensor[0].numel() * tensor.element_size()
    unit = _ROW // math.gcd(length, _ROW)  # so many slices are a whole number of rows
    slices = unit * max(1, _rows_at_once(tensor.device) * _ROW // (unit * length))
    return torch.cat([_row_hashes(_bytes(part)) for part in torch.split(tensor, slices)])


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _rows_at_once(device: torch.device) -> int:
    return _CPU_ROWS if device.type == "cpu" else _DEVICE_ROWS


def _row_hashes(raw: torch.Tensor) -> torch.Tensor:
    """Return the hash of each row of a uint8 tensor, int64; the last row is filled up with zeros."""
    on_cpu = raw.device.type == "cpu"
    for_words, for_upper = _column_factors(raw.device)
    found: list[torch.Tensor] = []
    step = _rows_at_once(raw.device) * _ROW
    upper = torch.empty(0, dtype=torch.int64, device=raw.device)  # the memory that all parts use
    for start in range(0, max(1, raw.numel()), step):
        part = raw[start : start + step]
        missing = -part.numel() % _ROW if part.numel() else _ROW
        if missing:
            part = functional.pad(part, (0, missing))
        elif part.storage_offset() % 8:
            part = part.clone()  # a view as 8-byte words must start at a multiple of 8 bytes
        words = part.view(torch.int64).view(-1, _COLUMNS)
        upper = torch.bitwise_right_shift(words, 32, out=upper if upper.shape == words.shape else None)
        if on_cpu:
            found.append(words @ for_words + upper @ for_upper)
        else:  # CUDA has no product of int64 matrices; a word is its lower half plus 2^32 times its upper one
            upper.mul_(for_upper)
            found.append(upper.addcmul_(words, for_words).sum(1))
    return torch.cat(found)


@cache
def _column_factors(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the odd numbers of each column, for its word and for its upper half again: splitmix64 of their places."""
    factors = []
    for place in range(1, 2 * _COLUMNS + 1):
        mixed = place * 0x9E3779B97F4A7C15 % (1 << 64)
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % (1 << 64)
        mixed = (mixed ^ (mixed >> 31)) | 1
        factors.append(mixed - (1 << 64) if mixed >> 63 else mixed)
    halves = torch.tensor(factors, dtype=torch.int64, device=device)
    return halves[:_COLUMNS], halves[_COLUMNS:]


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """Return the memory of a contiguous CPU tensor."""
    return bytes(memory_of(tensor))


def digest_model(model: nn.Module) -> dict[str, object]:
    """Return the digest of every parameter and buffer by name, which parameters are trainable, and the mode.

    All of it must be equal on the ranks that share a model. Raises PlanError for parameters on the meta device, which
    have no values.
    """
    on_meta = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if on_meta:
        raise PlanError(
            f"parameter {on_meta[0]}{f' and {len(on_meta) - 1} more' if len(on_meta) > 1 else ''}: on the meta device, "
            "without values; allocate and fill the weights before initialize, or use from_pretrained or from_config",
            on_meta,
        )
    fields: dict[str, object] = {f"model.{name}": digest(tensor) for name, tensor in model.named_parameters()}
    fields.update({f"model.{name} (buffer)": digest(tensor) for name, tensor in model.named_buffers()})
    fields["model.trainable"] = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    fields["model.training"] = model.training
    return fields
