"""A model in which one layer of many that are alike stands for the others: what is found of these holds for all.

The first and the last layer of each kind stay. What lies between gives, without a computation, what the first
one gave last: so every layer that stays is called as in the whole model, at its own place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from tpinit.runtime.planning.analysis.layer_dedup import LayerIndexProbe, SimilarLayers, group_similar_layers
from tpinit.runtime.planning.schema import ParameterPlan, Plan

__all__ = ["LayerFolding", "fold_layers"]

_KEPT = 2  # layers of each kind: the first one, and the last one, which follows its own kind


@dataclass(frozen=True, slots=True)
class LayerFolding:
    """For each list of layers, by its path: the places of the layers for which each that stays stands.

    `read` has an entry where the model's forward asked a layer for its place: then the others may compute
    something else, and nothing that was found of those that stay holds for them.
    """

    represented: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)
    index_reads: list[str] = field(default_factory=list)

    def full_names(self, name: str) -> list[str]:
        """Return the names in the whole model for which a name in the folded one stands."""
        for path, stands in self.represented.items():
            if name.startswith(path):
                found = re.match(r"\.(\d+)(?=\.|$)", name[len(path) :])
                if found is not None:
                    rest = name[len(path) + found.end() :]
                    return [f"{path}.{place}{rest}" for place in stands[int(found.group(1))]]
        return [name]

    def all_full_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the names in the whole model for which some in the folded one stand."""
        return tuple(whole for name in names for whole in self.full_names(name))

    def fused_column_groups(self, module: str, fused_with: str) -> list[str]:
        """Return the fused_with of each of the layers for which a module stands: that of its own layer of the list."""
        names = self.full_names(module)
        fused_column_groups = self.full_names(fused_with)
        return fused_column_groups if len(fused_column_groups) == len(names) else [fused_with] * len(names)

    def pattern(self, names: Sequence[str]) -> str:
        """Return one name for all that these, which differ in the places of layers alone, stand for."""
        for path, stands in self.represented.items():
            found = [re.match(rf"{re.escape(path)}\.(\d+)(?=\.|$)", name) for name in names]
            places = sorted(place for one in found if one is not None for place in stands[int(one.group(1))])
            if places:
                assert found[0] is not None
                return f"{path}.{{{_spans(places)}}}{names[0][found[0].end() :]}"
        return names[0]

    def unfold(self, plan: Plan, model: nn.Module) -> Plan:
        """Return the plan of the whole model, in its own order, from that of the folded one."""
        records: dict[str, ParameterPlan] = {}
        for record in plan.parameters:
            every = [self.full_names(name) for name in record.names]
            longest = max(map(len, every))
            for index in range(longest):
                names = tuple(one[index if len(one) == longest else 0] for one in every)
                records[names[0]] = replace(record, names=names)
        return replace(
            plan,
            parameters=tuple(records[name] for name, _ in model.named_parameters()),
            layers=tuple(
                replace(one, module=name, fused_with=fused_with)
                for one in plan.layers
                for name, fused_with in zip(
                    self.full_names(one.module), self.fused_column_groups(one.module, one.fused_with), strict=True
                )
            ),
            blocks=tuple(replace(one, module=name) for one in plan.blocks for name in self.full_names(one.module)),
            sequences=tuple(
                replace(
                    one,
                    gather_inputs=self.all_full_names(one.gather_inputs),
                    replicated_modules=self.all_full_names(one.replicated_modules),
                    column_readers=self.all_full_names(one.column_readers),
                )
                for one in plan.sequences
            ),
        )


@contextmanager
def fold_layers(model: nn.Module, told: Callable[[str], object] = lambda _: None) -> Iterator[LayerFolding]:
    """Let a few layers of each kind stand for all, in every long list of a model, for a time.

    `told` is what else is known of a module by its name, in which layers of one kind must not differ. Layers that
    share a parameter or a module with another part of the model are left alone, and so are lists inside of lists.
    """
    shared = _shared(model)
    folding = LayerFolding({}, [])
    lists: dict[str, Mapping[int, tuple[int, ...]]] = {}
    undo: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for path, module in list(model.named_modules()):
            if not isinstance(module, nn.ModuleList) or len(module) <= _KEPT or _inside(path, lists):
                continue
            if any(isinstance(layer.__dict__.get("forward"), _Echo) for layer in module):
                continue  # it is folded already
            if shared and any(id(one) in shared for one in _all_of(module)):
                continue
            kinds = group_similar_layers(path, module, told)
            if len(module) > sum(min(_KEPT, len(kind.places)) for kind in kinds):
                lists[path] = _fold(module, kinds, folding.index_reads, undo)
        yield replace(folding, represented=lists)
    finally:
        for held, name, value in reversed(undo):
            if value is _ABSENT:
                del held[name]
            else:
                held[name] = value


_ABSENT = object()


def _fold(
    layers: nn.ModuleList, kinds: Sequence[SimilarLayers], read: list[str], undo: list[tuple[dict[str, Any], str, Any]]
) -> dict[int, tuple[int, ...]]:
    """Fold one list, and return for which places those that stay stand."""
    stands: dict[int, tuple[int, ...]] = {}

    def put(held: dict[str, Any], name: str, value: Any) -> None:
        undo.append((held, name, held.get(name, _ABSENT)))
        held[name] = value

    for kind in kinds:
        first, last = kind.places[0], kind.places[-1]
        if len(kind.places) <= _KEPT:
            stands.update({place: (place,) for place in kind.places})
            continue
        stands[first], stands[last] = (first,), tuple(kind.places[1:])
        echo = _Echo(layers[first].forward)
        put(layers[first].__dict__, "forward", echo.speak)
        for place in kind.places[1:-1]:
            put(layers.__dict__["_modules"], str(place), _empty(layers[place], echo))
        for place in (first, last):
            for index in kind.varying:
                held, name, value = kind.numbers[place][index]
                put(held, name, LayerIndexProbe(value, read))
    return stands


class _Echo:
    """Gives what a layer gave when it was last called."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._given: list[Any] = []

    def speak(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer, and keep what it gives."""
        self._given[:] = [self._forward(*args, **kwargs)]
        return self._given[0]

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Return it again. Raises IndexError where the layer was not called before."""
        return self._given[0]


def _empty(layer: nn.Module, echo: _Echo) -> nn.Module:
    """Return a layer that says what this one says of itself, has nothing inside, and computes nothing."""
    made = object.__new__(type(layer))
    made.__dict__.update(layer.__dict__)
    for key, value in nn.Module().__dict__.items():
        if key != "training":
            made.__dict__[key] = value
    made.__dict__["forward"] = echo
    return made


def _shared(model: nn.Module) -> set[int]:
    """Return the modules and parameters that stand in more than one place of a model, by their ids."""
    holders: dict[int, int] = {}
    for module in model.modules():
        for held in (module._parameters, module._modules):
            for one in held.values():
                if one is not None:
                    holders[id(one)] = holders.get(id(one), 0) + 1
    return {key for key, count in holders.items() if count > 1}


def _all_of(module: nn.Module) -> Iterator[object]:
    yield from module.modules()
    yield from module.parameters()


def _inside(path: str, lists: Mapping[str, object]) -> bool:
    return any(path.startswith(f"{outer}.") for outer in lists)


def _spans(places: Sequence[int]) -> str:
    spans: list[list[int]] = []
    for place in places:
        if spans and spans[-1][1] == place - 1:
            spans[-1][1] = place
        else:
            spans.append([place, place])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
