"""Where the activations of a fake forward are: with the model, or, for one on the meta device, where they have values.

Planning reads no weight of a linear layer. So a model can be planned on another device than its own without a move of
its weights: they are replaced by parameters on the meta device, and the activations run where the model will train. An
attention that needs a GPU can be planned only so before the model is moved there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from tpinit.runtime.internals.torch_private import buffers_of, parameters_of, tree_map_only

__all__ = ["activation_device", "off_meta", "on_device"]

_META = torch.device("meta")
_devices = [torch.device("cpu")]  # the last one is in use


def activation_device() -> torch.device:
    """Return the device of the activations of a model that is on the meta device."""
    return _devices[-1]


class _OffMeta(TorchFunctionMode):
    """Replaces the meta device among the arguments of torch's functions (`ids.to(self.device)`)."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(torch.device, _with_values, (args, kwargs or {}))
        return function(*args, **kwargs)


def _with_values(device: torch.device) -> torch.device:
    return activation_device() if device == _META else device


def off_meta(model: nn.Module) -> AbstractContextManager[Any]:
    """Return the mode for a model with a parameter on the meta device; for any other model, nothing."""
    return _OffMeta() if any(parameter.is_meta for parameter in model.parameters()) else nullcontext()


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Let planning run the model's activations on `device`; nothing but its buffers is copied there.

    The model has parameters without values, and its buffers on the device, for the time of the context.
    """
    entries: list[tuple[dict[str, Any], dict[str, Any]]] = []
    replaced: dict[int, torch.Tensor] = {}  # by the id of the original, so that ties stay ties

    def replacement(tensor: torch.Tensor | None) -> Any:
        if tensor is None or tensor.is_meta or id(tensor) in replaced:
            return tensor if tensor is None or tensor.is_meta else replaced[id(tensor)]
        if isinstance(tensor, nn.Parameter):
            meta = torch.empty_like(tensor, device=_META)
            replaced[id(tensor)] = nn.Parameter(meta, requires_grad=tensor.requires_grad)
        else:
            replaced[id(tensor)] = tensor.to(device)
        return replaced[id(tensor)]

    _devices.append(device)
    try:
        for module in model.modules():
            dicts: tuple[dict[str, Any], ...] = (parameters_of(module), buffers_of(module))
            for held in dicts:
                entries.append((held, dict(held)))
                held.update({name: replacement(tensor) for name, tensor in held.items()})
        yield
    finally:
        for held, before in entries:
            held.clear()
            held.update(before)
        _devices.pop()
