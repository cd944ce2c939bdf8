"""Keeps the activations of a fake forward off the meta device, where they would have no values."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from tpinit.runtime.internals.torch_private import tree_map_only

__all__ = ["off_meta"]

_META, _CPU = torch.device("meta"), torch.device("cpu")


class _OffMeta(TorchFunctionMode):
    """Replaces the meta device among the arguments of torch's functions by the CPU (`ids.to(self.device)`)."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(torch.device, _on_cpu, (args, kwargs or {}))
        return function(*args, **kwargs)


def _on_cpu(device: torch.device) -> torch.device:
    return _CPU if device == _META else device


def off_meta(model: nn.Module) -> AbstractContextManager[Any]:
    """Return the mode for a model with a parameter on the meta device; for any other model, nothing."""
    return _OffMeta() if any(parameter.is_meta for parameter in model.parameters()) else nullcontext()
