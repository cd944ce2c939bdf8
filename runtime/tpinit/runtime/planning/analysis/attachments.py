"""Finds what is attached to a model that a fake forward does not run: hooks, replaced methods, computed weights.

A fake forward replaces the forwards of linear layers, embeddings and expert modules, and removes all hooks. What is
found here is compared with the plan: see `check.visibility`.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from tpinit.runtime.internals.mode_private import dispatch_modes, function_modes
from tpinit.runtime.internals.torch_private import (
    CALL_METHODS,
    attached_hooks,
    global_hooks,
    is_original_method,
    parameters_of,
    tensor_hooks,
)
from tpinit.runtime.internals.transformers_private import captures_outputs, is_conv1d

__all__ = ["Attachments", "described", "find_attachments", "global_problems", "is_replaced", "parameter_type_problems"]

_METHODS = ("__call__", *CALL_METHODS)
_LIBRARIES = ("torch", "transformers", "accelerate", "peft", "tpinit")
_TRACKERS = ("torch.utils.", "torch.distributed.", "torch.profiler")  # they read names and shapes of modules


@dataclass(frozen=True, slots=True)
class Attachments:
    """What is attached to the modules and parameters of a model, in words, by qualified name.

    `forward_hooks` and `backward_hooks` are hooks of modules, `gradient_hooks` those of parameters. `overrides` are
    the reasons why a linear layer, an embedding or a module without children may compute something other than its
    class does with plain parameters.
    """

    forward_hooks: dict[str, list[str]] = field(default_factory=dict)
    backward_hooks: dict[str, list[str]] = field(default_factory=dict)
    gradient_hooks: dict[str, list[str]] = field(default_factory=dict)
    overrides: dict[str, list[str]] = field(default_factory=dict)

    @property
    def hooked(self) -> frozenset[str]:
        """The names of the modules with hooks."""
        return frozenset({*self.forward_hooks, *self.backward_hooks})


def find_attachments(model: nn.Module) -> Attachments:
    """Return what is attached to a model. The hooks with which transformers records outputs are left out."""
    found = Attachments()
    for name, module in model.named_modules():
        for kind, function in attached_hooks(module):
            if not captures_outputs(function):
                hooks = found.backward_hooks if "backward" in kind else found.forward_hooks
                hooks.setdefault(name, []).append(f"a {kind} ({described(function)})")
        overrides = list(_overrides(module))
        if overrides:
            found.overrides[name] = overrides
    for name, parameter in model.named_parameters(remove_duplicate=False):
        for kind, function in tensor_hooks(parameter):
            found.gradient_hooks.setdefault(name, []).append(f"a {kind} ({described(function)})")
    return found


def global_problems() -> Iterator[tuple[str, str]]:
    """Yield the name and the problem of every hook and patch that changes what all modules of the process compute."""
    for kind, function in global_hooks():
        if not str(getattr(function, "__module__", "")).startswith(_TRACKERS):
            yield f"a {kind} ({described(function)})", "it runs for sharded layers too, on slices: remove it"
    for kind, modes in (("TorchFunctionMode", function_modes()), ("TorchDispatchMode", dispatch_modes())):
        for mode in modes:
            known = type(mode).__module__.partition(".")[0] in _LIBRARIES
            if not known and getattr(mode, "tp_only_watches", False) is not True:
                yield (
                    f"the {kind} {described(mode)}",
                    "it may change what sharded layers compute from parts of tensors: leave it first, or set "
                    "tp_only_watches = True on it if it changes no argument and no result",
                )
    for method in _METHODS:
        if not is_original_method(nn.Module, method):
            yield (
                f"torch.nn.Module.{method}",
                "it was replaced, and may change what a sharded layer computes: restore it",
            )
    if not isinstance(functional.linear, types.BuiltinFunctionType):
        yield "torch.nn.functional.linear", "it was replaced, and would run on slices of weights: restore it"


def parameter_type_problems(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the name and the problem of every parameter that has no values of its own on this process."""
    from torch.distributed.tensor import DTensor

    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            yield name, "it is uninitialized (a lazy module): run one forward before initialize"
        elif isinstance(parameter, DTensor) or isinstance(parameter.data, DTensor):
            yield name, "it is a DTensor, so something has sharded it already: initialize first, then shard over dp"


def is_replaced(module: nn.Module) -> bool:
    """Return whether a module is of a kind whose forward a fake forward replaces, other than a module of experts."""
    return isinstance(module, (nn.Linear, nn.Embedding)) or is_conv1d(module)


def described(function: Any) -> str:
    """Return the module and name of a hook's function."""
    name = getattr(function, "__qualname__", "") or type(function).__qualname__
    return f"{getattr(function, '__module__', '') or type(function).__module__}.{name}"


def _overrides(module: nn.Module) -> Iterator[str]:
    """Yield why a module may compute something else than the forward of its class with its registered parameters."""
    kind = type(module)
    for name in vars(module):
        if isinstance(_class_attribute(kind, name), (types.FunctionType, classmethod, staticmethod)):
            yield f"an attribute of the instance replaces its method {name}"
    yield from (
        f"its class {kind.__qualname__} replaces {method}"
        for method in _METHODS
        if not is_original_method(kind, method)
    )
    if parametrize.is_parametrized(module):
        yield "torch.nn.utils.parametrize computes its tensors"
        return
    for name in ("weight", "bias"):
        tensor = parameters_of(module).get(name)
        if tensor is not None and type(tensor) is not nn.Parameter:
            yield f"its {name} is a {type(tensor).__qualname__}, not a plain torch.nn.Parameter"
        elif tensor is None and isinstance(getattr(module, name, None), torch.Tensor):
            yield f"its {name} is computed from other tensors, and is no registered parameter"


def _class_attribute(kind: type, name: str) -> Any:
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
