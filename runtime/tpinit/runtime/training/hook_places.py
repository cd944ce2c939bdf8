"""Which modules of a sharded model take and return whole tensors, so that a hook on them sees what it always saw.

Before initialize a trace of the model shows it for each module with a hook (`planning.check.visibility`). A converted
model can't be traced again, so this reads it off the plan, and takes for sharded whatever may be.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from tpinit.runtime.planning.schema import LayerKind, Plan, SequencePlan

__all__ = ["HookPlaces", "is_inside", "owners_of", "token_places"]

_PAIRS = {LayerKind.COLUMN: LayerKind.ROW, LayerKind.ROW: LayerKind.COLUMN}


class HookPlaces:
    """The modules of a plan between whose column-parallel and row-parallel layers tensors are sharded."""

    def __init__(self, plan: Plan) -> None:
        self._kinds = {layer.module: layer.kind for layer in plan.layers}
        self._experts = tuple(f"{name}." for name, kind in self._kinds.items() if kind is LayerKind.EXPERTS)
        self._stacks = tuple(f"{sequence.stack}." for sequence in plan.sequences)
        self._block_of = {name: self._find_block(name) for name, kind in self._kinds.items() if kind in _PAIRS}

    def _find_block(self, layer: str) -> str:
        """Return the innermost module around a column-parallel (row-parallel) layer with a layer of the other kind."""
        partners = [name for name, kind in self._kinds.items() if kind is _PAIRS[self._kinds[layer]]]
        for owner in owners_of(layer):
            if any(is_inside(name, owner) for name in partners):
                return owner
        return ""

    def sees_parts(self, name: str, *, backward: bool) -> bool:
        """Return whether a hook of a module may see a rank's part of a tensor, or a part of a sum of gradients."""
        if name.startswith((*self._experts, *self._stacks)):
            return True
        kind = self._kinds.get(name)
        if kind is not None:
            partial_gradient = kind in (LayerKind.EXPERTS, LayerKind.SHARED_OUTPUT)
            return kind in _PAIRS or (backward and partial_gradient)
        inside = [block for layer, block in self._block_of.items() if is_inside(layer, name)]
        if inside:  # a module around pairs is whole at its border if each pair lies inside of it
            return not all(block == name or is_inside(block, name) for block in inside)
        return any(is_inside(name, block) for block in self._block_of.values())

    def runs_on_parts(self, name: str) -> bool:
        """Return whether the forward of a module computes with sharded tensors: it holds or is a sharded layer."""
        if name in self._kinds or name.startswith((*self._experts, *self._stacks)):
            return True
        return name in self._block_of.values() or self.sees_parts(name, backward=False)


def is_inside(name: str, owner: str) -> bool:
    """Return whether a module lies inside another; every module does inside the model itself, whose name is empty."""
    return name != owner and (not owner or name.startswith(f"{owner}."))


def owners_of(name: str) -> Iterable[str]:
    """Yield the modules that contain a module, innermost first; the model itself is the last, empty."""
    parts = name.split(".")[:-1]
    return (".".join(parts[:length]) for length in range(len(parts), -1, -1))


def token_places(model: nn.Module, sequence: SequencePlan) -> list[str]:
    """Return the modules with hooks that split and gather tokens; the first two are the ends of the stack."""
    layers = [f"{sequence.stack}.{name}" for name, _ in model.get_submodule(sequence.stack).named_children()]
    return list(dict.fromkeys([layers[0], layers[-1], *sequence.replicated_modules, *sequence.gather_inputs]))
