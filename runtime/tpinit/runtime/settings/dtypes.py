"""The dtypes of a config in torch."""

from __future__ import annotations

import torch
from tpinit.spec.vocabulary import DType

__all__ = ["TORCH_DTYPES"]

TORCH_DTYPES = {DType.FP32: torch.float32, DType.FP16: torch.float16, DType.BF16: torch.bfloat16}
"""The torch dtype of each dtype that a decision or a setting names."""
