"""Digests of tensors: short texts by which ranks compare tensors without sending them."""

from __future__ import annotations

import ctypes
import hashlib

import torch
from torch import nn
from torch.nn import functional
from tpinit.runtime.errors import PlanError

__all__ = ["digest", "digest_model", "raw_bytes"]

_COLUMNS = 256  # 8-byte words in a row of the table that is summed


def digest(tensor: torch.Tensor) -> str:
    """Return a text that is equal for equal tensors, in any memory layout: hex digits, the shape and the dtype.

    A changed tensor almost always has another digest; `_cpu_digest` and `_device_digest` say which changes they miss.
    These two use different formulas, so only tensors on one kind of device can be compared.
    """
    dense = tensor.detach().contiguous()
    code = _cpu_digest(dense) if dense.device.type == "cpu" else _device_digest(dense)
    return f"{code} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _cpu_digest(tensor: torch.Tensor) -> str:
    """Return a 96-bit hash of the row sums and the column sums of the tensor's memory, 24 hex digits.

    The memory is read as a table of 8-byte words with `_COLUMNS` columns; sums are modulo 2^64. The last bytes, fewer
    than a row, are hashed as they are. Every change of one, two or three words changes a sum. A change of four or more
    words is missed only if the differences cancel in every row and in every column. Hashing sums instead of all bytes
    takes no longer than reading the memory.
    """
    raw = tensor.reshape(-1).view(torch.uint8)
    if raw.storage_offset() % 8:
        raw = raw.clone()  # a view as 8-byte words must start at a multiple of 8 bytes
    in_table = raw.numel() - raw.numel() % (8 * _COLUMNS)
    table = raw[:in_table].view(torch.int64).view(-1, _COLUMNS)
    hashed = hashlib.blake2b(raw_bytes(raw[in_table:]), digest_size=12)
    for dim in (1, 0):
        hashed.update(raw_bytes(table.sum(dim)))
    return hashed.hexdigest()


def raw_bytes(tensor: torch.Tensor) -> bytes:
    """Return the memory of a contiguous CPU tensor."""
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def _device_digest(tensor: torch.Tensor) -> str:
    """Return a 64-bit sum over the tensor's 8-byte words, each mixed with its position, 16 hex digits.

    The sum is computed on the tensor's device. The mixing maps different words to different ones, so every change of
    one word changes the sum; a change of several words is missed if the mixed differences cancel modulo 2^64.
    """
    raw = tensor.reshape(-1).view(torch.uint8)
    words = functional.pad(raw, (0, -raw.numel() % 8)).view(torch.int64)
    # int64 arithmetic wraps around. Each step is one-to-one: a product with an odd number, or an exclusive or with the
    # word's own upper bits. torch's shift repeats the sign bit, which the masks remove.
    position = torch.arange(1, words.numel() + 1, dtype=torch.int64, device=words.device) * 0x2545F4914F6CDD1D
    mixed = (words ^ position) * 0x369DEA0F31A53F85
    mixed = (mixed ^ ((mixed >> 32) & ((1 << 32) - 1))) * 0x27D4EB2F165667C5
    mixed = mixed ^ ((mixed >> 29) & ((1 << 35) - 1))
    return f"{int(mixed.sum()) & ((1 << 64) - 1):016x}"


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
