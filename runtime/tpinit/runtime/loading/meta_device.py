"""A transformers model on the meta device, with real buffers: built as transformers' own `from_pretrained` does.

The class is built under `torch.device("meta")`, where `init_weights` initialises nothing, so no parameter takes memory
or time. Then the buffers get memory, and `init_weights` computes them; it skips parameters, which are marked as
initialised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from tpinit.runtime.internals.torch_private import buffers_of
from tpinit.runtime.internals.transformers_private import set_initialized

__all__ = ["build_on_meta_device"]


def build_on_meta_device(build: Callable[[], Any]) -> nn.Module | None:
    """Return the PreTrainedModel that `build` returns: parameters on the meta device, buffers on the CPU.

    Returns None for a class that needs another way: its constructor reads values of tensors, it keeps tensors that are
    neither parameters nor buffers, or its `init_weights` does not compute all buffers. The caller's RNG state is kept.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"), _SkipMetaWrites():
                model: Any = build()
        except (RuntimeError, NotImplementedError):  # a tensor on the meta device has no values to read
            return None
        modules: list[nn.Module] = list(model.modules())
        if any(_is_meta(value) for module in modules for value in vars(module).values()):
            return None
        buffers = [
            (module, name) for module in modules for name, buffer in buffers_of(module).items() if _is_meta(buffer)
        ]
        return model if not buffers or _compute_buffers(model, modules, buffers) else None


class _SkipMetaWrites(TorchFunctionMode):
    """Skips writes to tensors on the meta device. They have no effect, and torch takes long to find that out."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        if function in _WRITES and _is_meta(target):
            return target
        return function(*args, **kwargs)


_WRITES = {
    torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.fill_, torch.Tensor.zero_,
    nn.init.normal_, nn.init.uniform_, nn.init.constant_, nn.init.kaiming_uniform_,
}  # fmt: skip
"""Writes that models begin their parameters with; torch.nn.init's by the name of their argument, `tensor`."""


def _compute_buffers(model: Any, modules: list[nn.Module], buffers: list[tuple[nn.Module, str]]) -> bool:
    """Compute buffers by `init_weights`; return whether it wrote every element.

    It runs twice, on memory with other contents and the same RNG state: an element that it does not write differs.
    Modules without a buffer are marked as initialised too, which saves most of the time.
    """
    owners = {id(module) for module, _ in buffers}
    parameters = list(model.parameters())
    for parameter in parameters:
        set_initialized(parameter, True)
    state = torch.get_rng_state()
    results = []
    for content in (0, 1):
        for module, name in buffers:
            buffer = buffers_of(module)[name]
            assert buffer is not None
            buffers_of(module)[name] = torch.full_like(buffer, content, device="cpu")
        for module in modules:
            set_initialized(module, id(module) not in owners)
        torch.set_rng_state(state)
        model.init_weights()
        results.append([buffers_of(module)[name] for module, name in buffers])
    for parameter in parameters:
        set_initialized(parameter, False)
    return all(_equal(first, second) for first, second in zip(*results, strict=True))


def _is_meta(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta


def _equal(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    return first is not None and second is not None and not first.is_meta and torch.equal(first, second)
