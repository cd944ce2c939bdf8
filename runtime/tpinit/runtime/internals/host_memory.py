"""The memory of a tensor on the CPU, for files: numpy has no bf16."""

from __future__ import annotations

import ctypes

import torch

__all__ = ["memory_of"]


def memory_of(tensor: torch.Tensor) -> memoryview:
    """Return a view of the bytes of a contiguous CPU tensor, to be read and written. The tensor must outlive it."""
    size = tensor.numel() * tensor.element_size()
    if not size:
        return memoryview(bytearray())
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")
