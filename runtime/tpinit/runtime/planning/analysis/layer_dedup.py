"""Which layers of a list are alike in everything that planning can read of them, but for their place in it."""

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

__all__ = ["SimilarLayers", "LayerIndexProbe", "group_similar_layers"]

_PLAIN = (bool, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_Number = tuple[dict[str, Any], str, int]  # where it stands, its name, its value


@dataclass(slots=True)
class SimilarLayers:
    """Layers of one kind, by their places in the list, and the numbers of each in which they may differ.

    `varying` are those of `numbers` (by their index) that are another for each layer: its place, or so far from it.
    """

    places: list[int]
    traits: list[Any]
    numbers: dict[int, list[_Number]]
    varying: set[int] = field(default_factory=set)


def group_similar_layers(path: str, layers: nn.ModuleList, told: Callable[[str], object]) -> list[SimilarLayers]:
    """Return the layers of a list by kind, those of the first ones first.

    Two are of one kind whose modules have the same names, types, parameters (but for their numbers), buffers (with
    their numbers) and attributes, of which `told` says the same, and whose numbers are the same or their places.
    What is neither plain data nor a module must be one and the same object in both.
    """
    kinds: list[SimilarLayers] = []
    for place, layer in enumerate(layers):
        traits, numbers = _read(f"{path}.{place}", layer, told)
        for kind in kinds:
            first = kind.places[0]
            if kind.traits != traits:
                continue
            differing = _differing(kind.numbers[first], first, numbers, place)
            if differing is not None:
                kind.places.append(place)
                kind.numbers[place] = numbers
                kind.varying |= differing
                break
        else:
            kinds.append(SimilarLayers([place], traits, {place: numbers}))
    return kinds


def _differing(ones: list[_Number], one_place: int, others: list[_Number], other_place: int) -> set[int] | None:
    """Return which numbers differ as the places do; None where one differs otherwise."""
    found = set()
    for index, ((_, _, one), (_, _, other)) in enumerate(zip(ones, others, strict=True)):
        if one != other:
            if one - one_place != other - other_place:
                return None
            found.add(index)
    return found


def _read(path: str, layer: nn.Module, told: Callable[[str], object]) -> tuple[list[Any], list[_Number]]:
    """Return everything about a layer that is no whole number of a module's own; and those numbers."""
    traits: list[Any] = []
    numbers: list[_Number] = []
    inside = {id(module): name for name, module in layer.named_modules()}
    for name, module in layer.named_modules():
        traits += (name, type(module), told(f"{path}.{name}" if name else path))
        own = module.__dict__
        for key, value in own.items():
            kind = value.__class__
            traits.append(key)
            if kind is int:
                numbers.append((own, key, value))
            elif kind is bool or value is None or kind is str or kind is float:
                traits += (kind, value)
            elif key == "_modules":
                traits.append(list(value))
            elif key == "_parameters":
                traits += [(one, _parameter(held)) for one, held in value.items()]
            elif key not in _HOOKS or value:  # in this order: a place must not be asked
                traits.append(_token(value, inside))
    return traits, numbers


_HOOKS = frozenset(key for key in nn.Module().__dict__ if "hook" in key)


def _parameter(held: torch.Tensor | None) -> object:
    """Return what is read of a parameter: all but its numbers, for which others stand in or which are any."""
    return None if held is None else (type(held), held.shape, held.dtype, held.device, held.requires_grad)


def _token(value: Any, inside: Mapping[int, str]) -> object:
    """Return what is equal for two values in which nothing can be told apart; of unknown objects their identity."""
    kind = type(value)
    if kind is int or kind in _PLAIN or isinstance(value, Enum):
        return kind, value
    if isinstance(value, nn.Module):
        return ("inside", inside[id(value)]) if id(value) in inside else ("object", id(value))
    if isinstance(value, torch.Tensor):
        same = (kind, value.shape, value.dtype, value.device)
        return (*same, "") if value.is_meta else (*same, digest(value))
    if isinstance(value, Mapping):
        return kind, [(_token(key, inside), _token(one, inside)) for key, one in value.items()]
    if kind in (list, tuple, set, frozenset):
        return kind, [_token(one, inside) for one in value]
    if kind is types.MethodType:
        return kind, id(value.__func__), _token(value.__self__, inside)
    if kind is functools.partial:
        return kind, [_token(one, inside) for one in (value.func, value.args, value.keywords)]
    return "object", id(value)


class LayerIndexProbe:
    """A layer's place in its list, which tells when it is read as a number."""

    __slots__ = ("_read", "_value")

    def __init__(self, value: int, read: list[str]) -> None:
        self._value = value
        self._read = read


def _telling(name: str) -> Callable[..., Any]:
    def tell(self: LayerIndexProbe, *args: Any) -> Any:
        self._read.append(name)
        return getattr(self._value, name)(*args)

    return tell


_ALONE = ("hash", "index", "int", "float", "bool", "str", "repr", "format", "neg", "pos", "abs", "invert", "round")
_WITH_ANOTHER = ("eq", "ne", "lt", "le", "gt", "ge")
_BOTH_WAYS = (
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
for _name in (*_ALONE, *_WITH_ANOTHER, *_BOTH_WAYS, *(f"r{one}" for one in _BOTH_WAYS)):
    setattr(LayerIndexProbe, f"__{_name}__", _telling(f"__{_name}__"))
