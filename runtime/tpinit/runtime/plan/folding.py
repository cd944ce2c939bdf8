"""A model with a few layers of each kind in place of many: what is found of these holds for the others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from tpinit.runtime.plan.records import ParameterPlan, Plan

__all__ = ["Folding", "folded"]

_KEPT = 2  # layers of each kind: one that follows another kind, and one that follows its own


@dataclass(frozen=True, slots=True)
class Folding:
    """For each list of layers, by its path: the layers that each kept one stands for, by their first places."""

    lists: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    def names(self, name: str) -> list[str]:
        """Return the names in the whole model for which a name in the folded one stands."""
        for path, stands in self.lists.items():
            found = re.match(rf"{re.escape(path)}\.(\d+)(?=\.|$)", name)
            if found is not None:
                return [f"{path}.{place}{name[found.end() :]}" for place in stands[int(found.group(1))]]
        return [name]

    def all_of(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the names in the whole model for which some in the folded one stand."""
        return tuple(whole for name in names for whole in self.names(name))

    def doors(self, module: str, door: str) -> list[str]:
        """Return the door of each of the layers for which a module stands: that of its own layer of the list."""
        names = self.names(module)
        doors = self.names(door)
        return doors if len(doors) == len(names) else [door] * len(names)

    def pattern(self, names: Sequence[str]) -> str:
        """Return one name for all that these, which differ in the places of layers alone, stand for."""
        for path, stands in self.lists.items():
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
            every = [self.names(name) for name in record.names]
            longest = max(map(len, every))
            for index in range(longest):
                names = tuple(one[index if len(one) == longest else 0] for one in every)
                records[names[0]] = replace(record, names=names)
        return replace(
            plan,
            parameters=tuple(records[name] for name, _ in model.named_parameters()),
            layers=tuple(
                replace(one, module=name, door=door)
                for one in plan.layers
                for name, door in zip(self.names(one.module), self.doors(one.module, one.door), strict=True)
            ),
            blocks=tuple(replace(one, module=name) for one in plan.blocks for name in self.names(one.module)),
            sequences=tuple(
                replace(
                    one,
                    entries=self.all_of(one.entries),
                    whole=self.all_of(one.whole),
                    readers=self.all_of(one.readers),
                )
                for one in plan.sequences
            ),
        )


@contextmanager
def folded(model: nn.Module) -> Iterator[Folding]:
    """Shorten every long list of layers of a model to the first ones of each kind, for a time.

    Layers that share a parameter with another part of the model are left alone.
    """
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    lists: dict[str, tuple[tuple[int, ...], ...]] = {}
    undo: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for path, module in list(model.named_modules()):
            if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{outer}.") for outer in lists):
                continue
            if any(holders[id(one)] > 1 for one in module.parameters()):
                continue
            kinds: dict[Any, list[int]] = {}
            for place, layer in enumerate(module):
                kinds.setdefault(_kind(layer), []).append(place)
            if len(module) <= _KEPT * len(kinds):
                continue
            stands: list[tuple[int, ...]] = []
            for places in kinds.values():
                stands += [(place,) for place in places[: _KEPT - 1]]
                stands.append(tuple(places[_KEPT - 1 :]))
            stands = sorted(one for one in stands if one)
            parent, _, name = path.rpartition(".")
            owner = model.get_submodule(parent)
            undo.append((owner, name, module))
            owner._modules[name] = nn.ModuleList([module[one[0]] for one in stands])
            lists[path] = tuple(stands)
        yield Folding(lists)
    finally:
        for owner, name, module in undo:
            owner._modules[name] = module


def _kind(layer: nn.Module) -> Any:
    """Return what layers of one kind have in common: modules, shapes, and every number but their place."""
    found = []
    for name, module in layer.named_modules():
        numbers = tuple(
            sorted(
                (key, repr(one))
                for key, one in vars(module).items()
                if isinstance(one, (int, float, str)) and "layer_id" not in key and not key.startswith("_")
            )
        )
        shapes = tuple((key, tuple(one.shape)) for key, one in module._parameters.items() if one is not None)
        found.append((name, type(module), numbers, shapes))
    return tuple(found)


def _spans(places: Sequence[int]) -> str:
    spans: list[list[int]] = []
    for place in places:
        if spans and spans[-1][1] == place - 1:
            spans[-1][1] = place
        else:
            spans.append([place, place])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
