"""Parameters of a parallel layer that only the layer's own forward may read while the model runs.

A rank holds a slice of them. A forward that multiplies by such a weight without calling the layer would compute with
the slice as if it were the whole weight, so its values can't be read then: shape, dtype and device can.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tpinit.runtime.errors import EngineError
from tpinit.runtime.internals.torch_private import as_subclass, parameters_of, plain_tensor_functions
from tpinit.runtime.parallel.forward_scope import ForwardScope

__all__ = ["GuardedParameter", "guard_parameters", "guarded_attributes", "own_forward"]

_SCOPE, _NAME, _READING = "tp_guard_scope", "tp_guard_name", "tp_guard_reading"

_PROPERTIES = (
    "shape dtype device layout ndim requires_grad is_leaf is_meta is_cuda is_cpu is_sparse is_quantized itemsize nbytes"
)
_METHODS = "size dim numel nelement element_size is_floating_point is_complex stride is_contiguous get_device"
_METADATA = frozenset(
    (
        *(getattr(torch.Tensor, name).__get__ for name in _PROPERTIES.split()),
        *(getattr(torch.Tensor, name) for name in _METHODS.split()),
        *(torch.is_floating_point, torch.is_complex, torch.numel),
    )
)
"""The functions that read no value of a tensor."""


class GuardedParameter(nn.Parameter):
    """A view of a sharded parameter that shows its shape, dtype and device, and raises EngineError for its values."""

    tp_name: str

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function that reads metadata. Raises EngineError for any other function."""
        if func in _METADATA:
            with plain_tensor_functions():
                return func(*args, **(kwargs or {}))
        raise EngineError(_error_text(_name_in((args, kwargs)), getattr(func, "__name__", str(func))))


def _name_in(value: Any) -> str:
    """Return the name of the first guarded parameter in nested arguments."""
    if isinstance(value, GuardedParameter):
        return str(value.__dict__["tp_name"])
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return next((name for name in map(_name_in, items) if name), "")


def _error_text(name: str, function: str) -> str:
    return (
        f"{name} is sharded, and the forward of the model reads its values ({function}) without calling the module "
        "that holds it: it would compute with this rank's slice as if it were the whole weight. Call the module, or "
        "keep it whole: partition_type skip in partition_config, or vocab_parallel_lm_head false for a head"
    )


def guard_parameters(module: nn.Module, name: str, scope: ForwardScope | None) -> None:
    """Guard the parameters of a layer whose class has `guarded_attributes`, while a forward of `scope` runs."""
    module.__dict__.update({_SCOPE: scope, _NAME: name, _READING: False})


@contextmanager
def own_forward(module: Any) -> Iterator[None]:
    """Let the forward of the layer's original class read the parameters for the time of the context."""
    before = module.__dict__.get(_READING, False)
    module.__dict__[_READING] = True
    try:
        yield
    finally:
        module.__dict__[_READING] = before


def guarded_attributes(names: Sequence[str]) -> dict[str, property]:
    """Return the properties of a class of parallel layers that guard its parameters.

    The layer's own forward reads the parameters with `parameters_of`.
    """
    return {name: _guarded_attribute(name) for name in names}


def _guarded_attribute(name: str) -> property:
    def read(module: nn.Module) -> torch.Tensor | None:
        if name not in parameters_of(module):  # it was deleted, to be computed: the next forward refuses that
            raise AttributeError(name)
        parameter = parameters_of(module)[name]
        scope = module.__dict__.get(_SCOPE)
        if parameter is None or scope is None or not scope.active or module.__dict__[_READING]:
            return parameter
        guarded: GuardedParameter = as_subclass(parameter, GuardedParameter)
        guarded.__dict__["tp_name"] = f"{module.__dict__[_NAME]}.{name}"
        return guarded

    def write(module: nn.Module, _: Any) -> None:
        raise EngineError(
            f"{module.__dict__.get(_NAME, '')}.{name} is sharded, and can't be computed from other tensors "
            "(weight_norm, spectral_norm, prune): keep the layer whole (partition_type skip in partition_config)"
        )

    return property(read, write)
