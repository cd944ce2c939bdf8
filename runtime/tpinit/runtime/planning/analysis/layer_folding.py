"""Folds a model: in each long list of layers, two of every group of similar layers remain and represent the others.

Only a model of known code is folded (`known_code`): any other code may look at the index of a layer in ways that no
comparison of layers shows. The planner works on the folded model, and its result is unfolded to the whole model. The
first and the last layer of each group remain; a layer between them returns, without computing, the last output of the
first one. So each remaining layer is called at its own index, after the same number of layers as in the whole model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from tpinit.runtime.internals.torch_private import children_of, empty_module_state, parameters_of
from tpinit.runtime.planning.analysis.known_code import unknown_code
from tpinit.runtime.planning.analysis.layer_dedup import LayerIndexProbe, SimilarLayers, group_similar_layers
from tpinit.runtime.planning.schema import ParameterPlan, Plan

__all__ = ["LayerFolding", "fold_layers"]

_REMAINING = 2  # layers of each group: the first one and the last one


@dataclass(frozen=True, slots=True)
class LayerFolding:
    """How a model is folded.

    `represented[path][i]` are the indices of the layers of the list `path` that the remaining layer i represents, its
    own included. `index_reads` has an entry for each operation of the model's forward that read the index of a
    layer. If it is not empty, similar layers may compute different results, and the folding must not be used.
    """

    represented: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)
    index_reads: list[str] = field(default_factory=list)

    def full_names(self, name: str) -> list[str]:
        """Return the names in the whole model that a name in the folded model represents."""
        for path, represented in self.represented.items():
            if name.startswith(path):
                match = re.match(r"\.(\d+)(?=\.|$)", name[len(path) :])
                if match is not None:
                    rest = name[len(path) + match.end() :]
                    return [f"{path}.{index}{rest}" for index in represented[int(match.group(1))]]
        return [name]

    def all_full_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the names in the whole model that several names in the folded model represent."""
        return tuple(full_name for name in names for full_name in self.full_names(name))

    def full_fused_with(self, module: str, fused_with: str) -> list[str]:
        """Return `LayerPlan.fused_with` for each module that `module` represents: a name in its own layer."""
        names, fused_names = self.full_names(module), self.full_names(fused_with)
        return fused_names if len(fused_names) == len(names) else [fused_with] * len(names)

    def pattern(self, names: Sequence[str]) -> str:
        """Return one name, like `layers.{0-3,5}.mlp`, for all layers represented by names that differ in an index."""
        for path, represented in self.represented.items():
            matches = [re.match(rf"{re.escape(path)}\.(\d+)(?=\.|$)", name) for name in names]
            indices = sorted(
                index for match in matches if match is not None for index in represented[int(match.group(1))]
            )
            if indices:
                assert matches[0] is not None
                return f"{path}.{{{_spans(indices)}}}{names[0][matches[0].end() :]}"
        return names[0]

    def unfold(self, plan: Plan, model: nn.Module) -> Plan:
        """Return the plan of the whole `model`, with its order of parameters, from the plan of the folded model."""
        records: dict[str, ParameterPlan] = {}
        for record in plan.parameters:
            full_names = [self.full_names(name) for name in record.names]
            count = max(map(len, full_names))
            for index in range(count):
                names = tuple(each[index if len(each) == count else 0] for each in full_names)
                records[names[0]] = replace(record, names=names)
        return replace(
            plan,
            parameters=tuple(records[name] for name, _ in model.named_parameters()),
            layers=tuple(
                replace(layer, module=name, fused_with=fused_with)
                for layer in plan.layers
                for name, fused_with in zip(
                    self.full_names(layer.module), self.full_fused_with(layer.module, layer.fused_with), strict=True
                )
            ),
            blocks=tuple(
                replace(block, module=name) for block in plan.blocks for name in self.full_names(block.module)
            ),
            sequences=tuple(
                replace(
                    sequence,
                    gather_inputs=self.all_full_names(sequence.gather_inputs),
                    replicated_modules=self.all_full_names(sequence.replicated_modules),
                    column_readers=self.all_full_names(sequence.column_readers),
                )
                for sequence in plan.sequences
            ),
        )


@contextmanager
def fold_layers(
    model: nn.Module,
    request_of: Callable[[str], object] = lambda _: None,
    inputs: Mapping[str, Any] | None = None,
) -> Iterator[LayerFolding]:
    """Fold every long list of layers of `model`, and restore the model when the context ends.

    Nothing is folded if the model, or an object in its `inputs`, has code that is not known. `request_of` returns what
    was requested for a module, by name; layers with different requests are not similar. A list that shares a parameter
    or a module with another part of the model is not folded, nor one inside a folded list.
    """
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    lists = [(path, module) for path, module in lists if len(module) > _REMAINING]
    if not lists or unknown_code(model, inputs) is not None:
        yield LayerFolding()
        return
    shared_ids = _shared_ids(model)
    folding = LayerFolding({}, [])
    folded_lists: dict[str, Mapping[int, tuple[int, ...]]] = {}
    undo: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for path, module in lists:
            if _is_inside(path, folded_lists):
                continue
            if any(isinstance(layer.__dict__.get("forward"), _LastOutput) for layer in module):
                continue  # an outer context has folded it
            if shared_ids and any(id(part) in shared_ids for part in _parts(module)):
                continue
            groups = group_similar_layers(path, module, request_of)
            if len(module) > sum(min(_REMAINING, len(group.indices)) for group in groups):
                folded_lists[path] = _fold(module, groups, folding.index_reads, undo)
        yield replace(folding, represented=folded_lists)
    finally:
        for attributes, name, value in reversed(undo):
            if value is _ABSENT:
                del attributes[name]
            else:
                attributes[name] = value


_ABSENT = object()


def _fold(
    layers: nn.ModuleList,
    groups: Sequence[SimilarLayers],
    index_reads: list[str],
    undo: list[tuple[dict[str, Any], str, Any]],
) -> dict[int, tuple[int, ...]]:
    """Fold one list. Returns the indices that each remaining layer represents, and appends each change to `undo`."""
    represented: dict[int, tuple[int, ...]] = {}

    def set_item(attributes: dict[str, Any], name: str, value: Any) -> None:
        undo.append((attributes, name, attributes.get(name, _ABSENT)))
        attributes[name] = value

    for group in groups:
        first, last = group.indices[0], group.indices[-1]
        if len(group.indices) <= _REMAINING:
            represented.update({index: (index,) for index in group.indices})
            continue
        represented[first], represented[last] = (first,), tuple(group.indices[1:])
        last_output = _LastOutput(layers[first].forward)
        set_item(layers[first].__dict__, "forward", last_output.record)
        for index in group.indices[1:-1]:
            set_item(children_of(layers), str(index), _placeholder(layers[index], last_output))
        for index in (first, last):
            for position in group.index_like:
                attributes, name, value = group.integers[index][position]
                set_item(attributes, name, LayerIndexProbe(value, index_reads))
    return represented


class _LastOutput:
    """The last output of a layer's forward."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._output: list[Any] = []

    def record(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer's forward, and record and return its output."""
        self._output[:] = [self._forward(*args, **kwargs)]
        return self._output[0]

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Return the recorded output. Raises IndexError if the layer was not called."""
        return self._output[0]


def _placeholder(layer: nn.Module, last_output: _LastOutput) -> nn.Module:
    """Return a module of the layer's type and with its attributes, without submodules, parameters, buffers or hooks."""
    placeholder = object.__new__(type(layer))
    placeholder.__dict__.update(layer.__dict__)
    for key, value in empty_module_state().items():
        if key != "training":
            placeholder.__dict__[key] = value
    placeholder.__dict__["forward"] = last_output
    return placeholder


def _shared_ids(model: nn.Module) -> set[int]:
    """Return the ids of the modules and parameters that more than one module of the model holds."""
    counts: dict[int, int] = {}
    for module in model.modules():
        for child in (*parameters_of(module).values(), *children_of(module).values()):
            if child is not None:
                counts[id(child)] = counts.get(id(child), 0) + 1
    return {key for key, count in counts.items() if count > 1}


def _parts(module: nn.Module) -> Iterator[object]:
    """Yield the module, its submodules and their parameters."""
    yield from module.modules()
    yield from module.parameters()


def _is_inside(path: str, lists: Mapping[str, object]) -> bool:
    return any(path.startswith(f"{outer}.") for outer in lists)


def _spans(indices: Sequence[int]) -> str:
    """Return sorted indices as text, runs of neighbours joined: `0-3,5`."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and spans[-1][1] == index - 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
