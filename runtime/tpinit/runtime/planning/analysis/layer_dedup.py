"""Groups the layers of a list that differ in nothing the planner reads, except for their index in the list."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import nn
from tpinit.runtime.groups.digest import digest
from tpinit.runtime.internals.torch_private import children_of, empty_module_state, parameters_of

__all__ = ["LayerIndexProbe", "SimilarLayers", "group_similar_layers"]

_PLAIN_TYPES = (bool, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_IntAttribute = tuple[dict[str, Any], str, int]  # the module's __dict__, the attribute's name, its value


@dataclass(slots=True)
class SimilarLayers:
    """A group of similar layers, by their indices in the list, in order.

    `fingerprint` is what they have in common. `integers[i]` are the integer attributes of layer i and of its
    submodules, in an order that is the same for all layers. `index_like` are the positions in that order of the
    integers that follow the layer index: between any two layers they differ by as much as the indices.
    """

    indices: list[int]
    fingerprint: list[Any]
    integers: dict[int, list[_IntAttribute]]
    index_like: set[int] = field(default_factory=set)


def group_similar_layers(path: str, layers: nn.ModuleList, request_of: Callable[[str], object]) -> list[SimilarLayers]:
    """Return the layers of the list named `path` in groups, in the order of their first layers.

    Two layers are similar if their modules have the same names, types, parameters (shapes, dtypes, devices; not
    values), buffers (with values), attributes, and `request_of(name)`, and if each integer attribute is equal or
    differs as the layer indices do. An attribute that is neither plain data nor a module must be the same object.
    """
    groups: list[SimilarLayers] = []
    for index, layer in enumerate(layers):
        fingerprint, integers = _fingerprint(f"{path}.{index}", layer, request_of)
        for group in groups:
            first = group.indices[0]
            if group.fingerprint != fingerprint:
                continue
            index_like = _index_like(group.integers[first], first, integers, index)
            if index_like is not None:
                group.indices.append(index)
                group.integers[index] = integers
                group.index_like |= index_like
                break
        else:
            groups.append(SimilarLayers([index], fingerprint, {index: integers}))
    return groups


def _index_like(
    integers: list[_IntAttribute], index: int, other_integers: list[_IntAttribute], other_index: int
) -> set[int] | None:
    """Return the positions of the integers that differ as the layer indices do; None if any differs otherwise."""
    positions = set()
    for position, ((_, _, value), (_, _, other)) in enumerate(zip(integers, other_integers, strict=True)):
        if value != other:
            if value - index != other - other_index:
                return None
            positions.add(position)
    return positions


def _fingerprint(
    path: str, layer: nn.Module, request_of: Callable[[str], object]
) -> tuple[list[Any], list[_IntAttribute]]:
    """Return everything the planner reads of a layer except its integer attributes; and these."""
    fingerprint: list[Any] = []
    integers: list[_IntAttribute] = []
    submodules = {id(module): name for name, module in layer.named_modules()}
    for name, module in layer.named_modules():
        fingerprint += (name, type(module), request_of(f"{path}.{name}" if name else path))
        attributes = module.__dict__
        for key, value in attributes.items():
            kind = value.__class__
            fingerprint.append(key)
            if kind is int:
                integers.append((attributes, key, value))
            elif kind is bool or value is None or kind is str or kind is float:
                fingerprint += (kind, value)
            elif value is children_of(module):
                fingerprint.append(list(value))
            elif value is parameters_of(module):
                fingerprint += [(parameter_name, _parameter_token(held)) for parameter_name, held in value.items()]
            elif key not in _HOOKS or value:  # in this order: the truth of a LayerIndexProbe must not be read
                fingerprint.append(_token(value, submodules))
    return fingerprint, integers


_HOOKS = frozenset(key for key in empty_module_state() if "hook" in key)


def _parameter_token(parameter: torch.Tensor | None) -> object:
    """Return what the planner reads of a parameter: everything but its values, which no fake forward uses."""
    if parameter is None:
        return None
    return type(parameter), parameter.shape, parameter.dtype, parameter.device, parameter.requires_grad


def _token(value: Any, submodules: Mapping[int, str]) -> object:
    """Return an object that compares equal for two attribute values that have the same effect.

    Plain data, containers, enums, methods and partial functions compare by content, tensors by a digest, modules
    inside the layer by their names (`submodules`, by id), and all other objects by identity.
    """
    kind = type(value)
    if kind is int or kind in _PLAIN_TYPES or isinstance(value, Enum):
        return kind, value
    if isinstance(value, nn.Module):
        return ("inside", submodules[id(value)]) if id(value) in submodules else ("object", id(value))
    if isinstance(value, torch.Tensor):
        properties = (kind, value.shape, value.dtype, value.device)
        return (*properties, "") if value.is_meta else (*properties, digest(value))
    if isinstance(value, Mapping):
        return kind, [(_token(key, submodules), _token(item, submodules)) for key, item in value.items()]
    if kind in (list, tuple, set, frozenset):
        return kind, [_token(item, submodules) for item in value]
    if kind is types.MethodType:
        return kind, id(value.__func__), _token(value.__self__, submodules)
    if kind is functools.partial:
        return kind, [_token(part, submodules) for part in (value.func, value.args, value.keywords)]
    return "object", id(value)


class LayerIndexProbe:
    """Stands in for the integer index of a layer, and records every operation that reads its value.

    If the forward never reads the index, the layers of a group compute the same for the same input. `reads` collects
    the names of the operations. The probe is not a subclass of int, so that C code can't read it unnoticed.
    """

    __slots__ = ("_reads", "_value")

    def __init__(self, value: int, reads: list[str]) -> None:
        self._value = value
        self._reads = reads


def _recorded(name: str) -> Callable[..., Any]:
    def operation(self: LayerIndexProbe, *args: Any) -> Any:
        self._reads.append(name)
        return getattr(self._value, name)(*args)

    return operation


_UNARY = ("hash", "index", "int", "float", "bool", "str", "repr", "format", "neg", "pos", "abs", "invert", "round")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "divmod",
    "pow",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)
for _name in (*_UNARY, *_COMPARISONS, *_ARITHMETIC, *(f"r{operator}" for operator in _ARITHMETIC)):
    setattr(LayerIndexProbe, f"__{_name}__", _recorded(f"__{_name}__"))
