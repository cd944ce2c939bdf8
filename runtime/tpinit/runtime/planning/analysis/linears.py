"""Finds the linear layers and the expert modules of a model: by type, attributes and behaviour, not by module names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tpinit.runtime.internals.torch_private import PlainDispatchMode, parameters_of, storage_key, tree_leaves
from tpinit.runtime.internals.transformers_private import is_conv1d

__all__ = ["LinearInfo", "expert_weights", "find_experts", "find_linears", "flat_expert_shapes"]


@dataclass(frozen=True, slots=True)
class LinearInfo:
    """A module that multiplies the last dimension of its input by a weight matrix: nn.Linear, or GPT-2's Conv1D.

    `out_dim` is the dimension of the weight along which the output features lie: 0 for a weight [out, in], 1 for a
    weight [in, out].
    """

    name: str
    module: nn.Module
    out_dim: int

    @property
    def out_features(self) -> int:
        """The size of the output's last dimension."""
        return int(self._weight.shape[self.out_dim])

    @property
    def in_features(self) -> int:
        """The size of the input's last dimension."""
        return int(self._weight.shape[1 - self.out_dim])

    @property
    def _weight(self) -> torch.Tensor:
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight


def find_linears(model: nn.Module) -> dict[str, LinearInfo]:
    """Return every linear layer by its name: nn.Linear, subclasses that compute the same, and Conv1D."""
    linears = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if type(module).forward is nn.Linear.forward or _computes_linear(module):
                linears[name] = LinearInfo(name, module, 0)
        elif is_conv1d(module):
            linears[name] = LinearInfo(name, module, 1)
    return linears


_VIEWS = ("view", "_unsafe_view", "reshape", "t", "transpose", "permute", "numpy_T", "expand", "unsqueeze", "squeeze")
_PRODUCTS = ("mm", "bmm", "matmul", "addmm", "baddbmm", "linear", "add", "add_", "detach", "alias")
_LINEAR_OPERATIONS = frozenset((*_VIEWS, *_PRODUCTS))
"""The aten operations that a linear layer may run: views, matrix products, and the sum with the bias."""


class _LinearOperations(PlainDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """Watches whether all operations are those of a linear layer, and read none of some `others`, by storage."""

    def __init__(self, others: set[int]) -> None:
        super().__init__()
        self._others = others
        self.are_linear = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.are_linear &= func.__name__.partition(".")[0] in _LINEAR_OPERATIONS
        self.are_linear &= not any(storage_key(tensor) in self._others for tensor in tensors)
        return func(*args, **(kwargs or {}))


def _computes_linear(module: nn.Linear) -> bool:
    """Return whether a subclass of nn.Linear computes `input @ weight.T + bias` (a router, for example, does not).

    The module runs on random values in place of its weight and bias: in training and evaluation mode, on inputs of
    two and three dimensions, small, zero and large. It must run the operations of a linear layer only, read no other
    parameter or buffer, and set no attribute.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((module.out_features, module.in_features), generator=generator)
    bias = None if module.bias is None else torch.randn(module.out_features, generator=generator)
    features = torch.randn((1, 2, module.in_features), generator=generator)
    others = {
        storage_key(tensor)
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if name not in ("weight", "bias")
    }
    before = dict(module.__dict__)
    module.__dict__.pop("forward", None)
    module.__dict__["weight"] = weight
    if bias is not None:
        module.__dict__["bias"] = bias
    attributes = dict(module.__dict__)
    try:
        for training in (True, False):
            module.__dict__["training"] = attributes["training"] = training
            for scale in (1.0, 0.0, 1e4):
                for example in (features * scale, features[0] * scale):
                    if not _runs_linear(module, example, weight, bias, others) or module.__dict__ != attributes:
                        return False
    except Exception:  # the forward takes more than one tensor, or sets tensors, so it is not a linear layer's
        return False
    finally:
        module.__dict__.clear()
        module.__dict__.update(before)
    return True


def _runs_linear(
    module: nn.Linear, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, others: set[int]
) -> bool:
    """Return whether the forward of a module runs the operations of a linear layer, and returns what that returns."""
    with torch.no_grad(), _LinearOperations(others) as operations:
        output = module.forward(features)
    expected = nn.functional.linear(features, weight, bias)
    return (
        operations.are_linear
        and isinstance(output, torch.Tensor)
        and output.shape == expected.shape
        and torch.allclose(output, expected, 1e-3, 1e-3 * max(1.0, float(features.abs().max())))
    )


def find_experts(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module that holds the weights of all experts of a layer, by its name.

    The weights are either stacked, `gate_up_proj` and `down_proj` of [experts, ., .], or flat, matrices of
    [experts * width, hidden] in a submodule. A module inside such a module is not listed.
    """
    experts: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer in experts)
        if not nested and (_has_stacked_experts(module) or flat_expert_shapes(module)):
            experts[name] = module
    return experts


def _has_stacked_experts(module: nn.Module) -> bool:
    parameters = parameters_of(module)
    present = {key for key, parameter in parameters.items() if parameter is not None}
    return {"gate_up_proj", "down_proj"} <= present and all(
        parameter is None or parameter.dim() == 3 for key, parameter in parameters.items() if key.endswith("_proj")
    )


def flat_expert_shapes(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return the possible (number of experts, width of one expert) of a module with flat expert weights.

    That is a module without parameters of its own whose submodules hold at least two weights, all of the same shape
    [experts * width, hidden], where experts, width and hidden are integer attributes of the module. Empty for any
    other module.
    """
    if any(parameter is not None for parameter in parameters_of(module).values()) or not any(module.children()):
        return ()
    attributes = {value for value in vars(module).values() if type(value) is int and value > 1}
    shapes: list[tuple[int, ...]] = []
    for name, parameter in module.named_parameters():
        shapes.append(tuple(parameter.shape))
        if shapes[0] != shapes[-1] or name.endswith((".weight", ".bias")):
            return ()  # most modules return at their first parameter, so that the search over a model stays cheap
    if len(shapes) < 2:
        return ()
    shape = shapes[0]
    if len(shape) != 2 or shape[1] not in attributes:
        return ()
    pairs = ((count, shape[0] // count) for count in sorted(attributes) if shape[0] % count == 0)
    return tuple((count, width) for count, width in pairs if width in attributes)


def expert_weights(module: nn.Module) -> list[str]:
    """Return the names, below an expert module, of the weights that are sharded together."""
    if _has_stacked_experts(module):
        return ["gate_up_proj", "down_proj"]
    return [name for name, _ in module.named_parameters()]
