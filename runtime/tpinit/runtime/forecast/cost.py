"""What a plan costs before anything runs: collectives and their bytes, and the memory of each rank.

The collectives are found by one run of the model with stubs in place of its matrices: which of them read the
same tensor, and so share a collective, is seen there, not assumed. Counts and sizes are those of one forward
and backward, and of one update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tpinit.runtime.parallel.loss import asks_for_it
from tpinit.runtime.parallel.sequence import map_input, map_output
from tpinit.runtime.planning.analysis.fake_forward import run_fake_forward, without_hooks
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.schema import GradientRule, LayerKind, Plan, SequencePlan

__all__ = ["Collective", "Memory", "count_collectives", "memory_of", "product", "update_collectives", "wire_bytes"]

_BUCKET = 1 << 25  # elements, as in gradients


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective: where, in which direction, over which group, of how many numbers of how many bytes.

    `kind` is "all_reduce", "all_gather" or "reduce_scatter"; `elements` are those of the whole tensor, which every
    rank has after it, or before a reduce-scatter.
    """

    module: str
    phase: str  # "forward", "backward" or "update"
    kind: str
    group: str  # "tp" or "dp"
    elements: int
    item: int

    @property
    def nbytes(self) -> int:
        """The size of the tensor in bytes."""
        return self.elements * self.item


def wire_bytes(one: Collective, ranks: int) -> float:
    """Return what a rank sends for a collective that runs as a ring: nothing in a group of one."""
    return one.nbytes * (ranks - 1) / ranks * (2 if one.kind == "all_reduce" else 1)


def count_collectives(
    model: nn.Module, plan: Plan, inputs: Mapping[str, Any], tokens: int, item: int, labels: bool = True
) -> list[Collective]:
    """Return the collectives of one forward and backward over `tokens` tokens a rank, of numbers of `item` bytes.

    `inputs` are keyword arguments of one small forward, with `input_ids` where sizes shall grow with the tokens.
    With `labels` a causal language model computes its own loss.
    """
    layers = {layer.module: layer for layer in plan.layers}
    if plan.tp_size == 1:
        return []
    ids = inputs.get("input_ids")
    scale = tokens / ids.numel() if isinstance(ids, torch.Tensor) else 1.0
    found: list[Collective] = []
    last: list[torch.Tensor] = []

    def note(module: str, phase: str, kind: str, elements: float, size: int = item) -> None:
        found.append(Collective(module, phase, kind, "tp", round(elements * scale), size))

    def enter(name: str, features: torch.Tensor) -> None:
        # The fused_with to the cut layers: whoever reads the same tensor as the one before goes in with it.
        if not last or last[0] is not features:
            note(name, "backward", "all_reduce", features.numel())
            last[:] = [features]

    generator = torch.Generator().manual_seed(0)

    def matrix(one: LinearInfo, features: torch.Tensor) -> torch.Tensor:
        layer = layers.get(one.name)
        whole = features.numel() // features.shape[-1] * one.out_features
        if layer is not None:
            rows = features.numel() // features.shape[-1]
            kind = layer.kind
            if kind in (LayerKind.COLUMN, LayerKind.COLUMN_GATHER, LayerKind.HEAD) and layer.reduce_input_grad:
                enter(one.name, features)
            if kind is LayerKind.COLUMN_GATHER:
                note(one.name, "forward", "all_gather", whole)
            elif kind is LayerKind.ROW_SPLIT:
                note(one.name, "backward", "all_gather", features.numel())
            if layer.scatter_output:
                note(one.name, "forward", "reduce_scatter", whole)
                note(one.name, "backward", "all_gather", whole)
            elif kind in (LayerKind.ROW, LayerKind.ROW_SPLIT):
                note(one.name, "forward", "all_reduce", whole)
            elif kind is LayerKind.SHARED_OUTPUT:
                note(one.name, "backward", "all_reduce", whole)
            elif kind is LayerKind.HEAD and labels and _own_loss(model):
                note(f"{one.name} (loss)", "forward", "all_gather", 3 * rows * plan.tp_size, 4)
            elif kind is LayerKind.HEAD:
                note(one.name, "forward", "all_gather", whole)
        return torch.randn((*features.shape[:-1], one.out_features), generator=generator).to(features)

    def experts(name: str, features: torch.Tensor) -> torch.Tensor:
        if name in layers:
            enter(name, features)
            note(name, "forward", "all_reduce", features.numel())
        return torch.randn(features.shape, generator=generator).to(features)

    def looked_up(name: str) -> Any:
        return lambda _, __, output: note(name, "forward", "all_reduce", output.numel())

    def mixed(name: str) -> Any:
        def seen(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            given = [*args[1:], *(one for key, one in kwargs.items() if key != "hidden_states")]
            for one in given:
                if isinstance(one, torch.Tensor) and one.is_floating_point():
                    note(f"{name} (router)", "backward", "all_reduce", one.numel())

        return seen

    handles = []
    with without_hooks(model):  # the hooks of others are away: ours come after
        for sequence in plan.sequences:
            handles += _watch_tokens(model, sequence, note)
        for name, layer in layers.items():
            module = model.get_submodule(name)
            if layer.kind is LayerKind.EMBEDDING:
                handles.append(module.register_forward_hook(looked_up(name)))
            elif layer.kind is LayerKind.EXPERTS:
                handles.append(module.register_forward_pre_hook(mixed(name), with_kwargs=True))
        try:
            run_fake_forward(model, inputs, matrix, experts)
        finally:
            for handle in handles:
                handle.remove()
    return found


def _watch_tokens(model: nn.Module, sequence: SequencePlan, note: Callable[[str, str, str, float], None]) -> list[Any]:
    """Note what is sent where the tokens of a list of layers are cut and gathered. Returns the handles of the hooks."""
    gathered: list[torch.Tensor] = []

    def told(name: str, *sent: tuple[str, str], once: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
        def seen(features: torch.Tensor) -> torch.Tensor:
            if once and gathered and gathered[0] is features:  # as at the fused_with: together
                return features
            gathered[:] = [features]
            for phase, kind in sent:
                note(f"{name} (tokens)", phase, kind, features.numel())
            return features

        return seen

    join, part = ("forward", "all_gather"), ("backward", "all_gather")
    layers = [f"{sequence.stack}.{name}" for name, _ in model.get_submodule(sequence.stack).named_children()]
    entering = {layers[0]: told(layers[0], part)} | {name: told(name, join) for name in sequence.replicated_modules}
    leaving = {layers[-1]: told(layers[-1], join)} | {name: told(name, part) for name in sequence.replicated_modules}
    handles = [map_input(model.get_submodule(name), change) for name, change in entering.items()]
    handles += [map_output(model.get_submodule(name), change) for name, change in leaving.items()]
    for name in sequence.gather_inputs:
        collected = told(name, join, ("backward", "reduce_scatter"), once=True)
        handles.append(map_input(model.get_submodule(name), collected))
    return handles


def _own_loss(model: nn.Module) -> bool:
    loss = getattr(model, "loss_function", None)
    return getattr(loss, "__name__", "") == "ForCausalLMLoss" and asks_for_it(type(model).forward)


def update_collectives(plan: Plan, dp_size: int, item: int) -> list[Collective]:
    """Return the collectives of one update: parts of gradients summed, the average over replicas, the norm.

    `item` is the size of a number of a gradient, 4 where there are fp32 masters.
    """
    found = []
    parts = [one for one in plan.parameters if one.gradient_rule is GradientRule.PARTIAL]
    if plan.tp_size > 1 and parts:
        elements = len(parts) + sum(product(one.shape) for one in parts)
        found.append(Collective("gradients of which ranks have parts", "update", "all_reduce", "tp", elements, item))
    if dp_size > 1:
        found.append(Collective("which parameters were used", "update", "all_reduce", "dp", len(plan.parameters), 4))
        count = 0
        for one in plan.parameters:
            own = product(one.local_shape(plan.tp_size, plan.tp_rank))
            if count and count + own > _BUCKET:
                found.append(Collective("gradients", "update", "all_reduce", "dp", count, item))
                count = 0
            count += own
        found.append(Collective("gradients", "update", "all_reduce", "dp", count, item))
    if plan.tp_size > 1:
        found.append(Collective("gradient norm", "update", "all_reduce", "tp", 1, 8))
    return found


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one rank, without activations: what the parameters, gradients, masters and optimizer states take."""

    parameters: int
    gradients: int
    masters: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.masters + self.optimizer


def memory_of(plan: Plan, tp_rank: int, item: int, states: int) -> Memory:
    """Return the memory of one rank: parameters of `item` bytes a number, `states` numbers of optimizer state each.

    Parameters of 2 bytes have fp32 masters, where gradients are accumulated and states live.
    """
    numbers = sum(product(one.local_shape(plan.tp_size, tp_rank)) for one in plan.parameters)
    low = item < 4 and states >= 0
    wide = 4 if low else item
    trained = states >= 0
    return Memory(
        numbers * item,
        numbers * wide if trained else 0,
        numbers * 4 if low else 0,
        numbers * wide * max(states, 0),
    )


def product(shape: Iterable[int]) -> int:
    """Return how many numbers a tensor of this shape has."""
    return math.prod(shape)
