"""What a plan costs, computed before a run: the collectives and their bytes, and the memory of each rank.

Which collectives a layer issues comes from the table that the layers themselves use (`parallel.layer_kinds`); how often
and of which size comes from one fake forward of the model, which also shows which layers read the same tensor and so
share a collective. Counts and sizes are those of one forward and backward, and of one update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from tpinit.runtime.groups.buckets import fill_buckets, send_order
from tpinit.runtime.groups.gradient_owners import GradientOwners
from tpinit.runtime.parallel.collectives import RegionFunction, copy_to_tp_region
from tpinit.runtime.parallel.layer_kinds import LAYER_REGIONS, LayerKind, layer_regions
from tpinit.runtime.parallel.loss import LOSS_COLLECTIVE, LOSS_STATISTICS, computes_causal_loss
from tpinit.runtime.parallel.sequence import (
    gather_replicated_tokens,
    gather_tokens,
    map_input,
    map_output,
    split_tokens,
)
from tpinit.runtime.planning.analysis.fake_forward import run_fake_forward, without_hooks
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.schema import GradientRule, LayerPlan, Plan, SequencePlan
from tpinit.runtime.settings import LARGEST_BUCKET

__all__ = ["Collective", "Memory", "count_collectives", "memory_of", "product", "update_collectives", "wire_bytes"]


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective of `elements` elements of `item` bytes, which `module` issues in `phase` over the group `group`.

    `kind` is "all_reduce", "reduce", "all_gather", "reduce_scatter" or "broadcast"; `elements` counts the whole tensor,
    which every rank has after an all-reduce, all-gather or broadcast and before a reduce or reduce-scatter.
    """

    module: str
    phase: str  # "forward", "backward" or "update"
    kind: str
    group: str  # "tp" or "dp"
    elements: int
    item: int

    @property
    def nbytes(self) -> int:
        """The size of the whole tensor in bytes."""
        return self.elements * self.item


def wire_bytes(collective: Collective, ranks: int) -> float:
    """Return the bytes that each rank sends for a collective that runs as a ring over `ranks` ranks; 0 for one rank."""
    return collective.nbytes * (ranks - 1) / ranks * (2 if collective.kind == "all_reduce" else 1)


def count_collectives(
    model: nn.Module, plan: Plan, inputs: Mapping[str, Any], tokens: int, item: int, labels: bool = True
) -> list[Collective]:
    """Return the collectives of one forward and backward over `tokens` tokens a rank, with elements of `item` bytes.

    `inputs` are the keyword arguments of one small forward; if they have `input_ids`, sizes are scaled from their
    number of tokens to `tokens`. `labels`: the batch has labels, from which a causal language model computes its loss.
    """
    if plan.tp_size == 1:
        return []
    ids = inputs.get("input_ids")
    scale = tokens / ids.numel() if isinstance(ids, torch.Tensor) else 1.0
    layers = {layer.module: layer for layer in plan.layers}
    counter = _Counter(layers, plan.tp_size, scale, item, labels and computes_causal_loss(model))
    handles = []
    with without_hooks(model):  # removes the user's hooks, so the counter's are added inside
        try:
            for sequence in plan.sequences:
                handles += counter.watch_tokens(model, sequence)
            for name, layer in layers.items():
                module = model.get_submodule(name)
                if layer.kind is LayerKind.EMBEDDING:
                    handles.append(module.register_forward_hook(counter.embedding_hook(name)))
                elif layer.kind is LayerKind.EXPERTS:
                    handles.append(module.register_forward_pre_hook(counter.router_hook(name), with_kwargs=True))
            run_fake_forward(model, inputs, counter.linear, counter.experts)
        finally:
            for handle in handles:
                handle.remove()
    return counter.found


@dataclass(slots=True)
class _Counter:
    """Records the collectives of one fake forward, in the order of the forward.

    `scale`: tokens of the run over tokens of the fake forward. `loss_parallel`: the loss is computed from sharded
    logits. `last_copied`: the tensor that was last copied to the TP region, whose copy the next readers share.
    """

    layers: Mapping[str, LayerPlan]
    tp_size: int
    scale: float
    item: int
    loss_parallel: bool
    found: list[Collective] = field(default_factory=list)
    last_copied: torch.Tensor | None = None
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def add(self, module: str, phase: str, kind: str, elements: float, item: int | None = None) -> None:
        size = self.item if item is None else item
        self.found.append(Collective(module, phase, kind, "tp", round(elements * self.scale), size))

    def add_region(self, module: str, region: RegionFunction | None, elements: int) -> None:
        """Add the collectives of a region function whose whole tensor has `elements` elements."""
        for phase, kind in region.collectives() if region is not None else ():
            self.add(module, phase, kind.value, elements)

    def add_input(self, module: str, region: RegionFunction | None, features: torch.Tensor) -> None:
        """Add the collectives at a layer's input. Layers that read one tensor share its copy to the TP region."""
        if region is copy_to_tp_region:
            if self.last_copied is features:
                return
            self.last_copied = features
        self.add_region(module, region, features.numel())

    def linear(self, info: LinearInfo, features: torch.Tensor) -> torch.Tensor:
        """Stand in for a linear: add its collectives, and return random features [..., out_features]."""
        layer = self.layers.get(info.name)
        if layer is not None:
            regions = layer_regions(
                layer.kind, reduce_input_grad=layer.reduce_input_grad, scatter_output=layer.scatter_output
            )
            self.add_input(info.name, regions.input, features)
            rows = features.numel() // features.shape[-1]
            if layer.kind is LayerKind.HEAD and self.loss_parallel:
                statistics = LOSS_STATISTICS * rows * self.tp_size
                self.add(f"{info.name} (loss)", "forward", LOSS_COLLECTIVE.value, statistics, torch.float32.itemsize)
            else:
                self.add_region(info.name, regions.output, rows * info.out_features)
        return torch.randn((*features.shape[:-1], info.out_features), generator=self.generator).to(features)

    def experts(self, name: str, features: torch.Tensor) -> torch.Tensor:
        """Stand in for a block of experts: add its collectives, and return random features of the same shape."""
        if name in self.layers:
            regions = layer_regions(LayerKind.EXPERTS)
            self.add_input(name, regions.input, features)
            self.add_region(name, regions.output, features.numel())
        return torch.randn(features.shape, generator=self.generator).to(features)

    def embedding_hook(self, name: str) -> Any:
        region = LAYER_REGIONS[LayerKind.EMBEDDING].output
        return lambda _, __, output: self.add_region(name, region, output.numel())

    def router_hook(self, name: str) -> Any:
        """Return a hook that adds the collectives of every floating-point argument but the hidden states."""
        region = LAYER_REGIONS[LayerKind.EXPERTS].input

        def add_arguments(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            for value in (*args[1:], *(value for key, value in kwargs.items() if key != "hidden_states")):
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    self.add_region(f"{name} (router)", region, value.numel())

        return add_arguments

    def watch_tokens(self, model: nn.Module, sequence: SequencePlan) -> list[Any]:
        """Add the collectives that shard and gather the tokens of a list of layers. Returns the hooks' handles."""
        last_gathered: list[torch.Tensor] = []

        def adding(name: str, region: RegionFunction, shared: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
            def add_tokens(features: torch.Tensor) -> torch.Tensor:
                if shared and last_gathered and last_gathered[0] is features:
                    return features
                if shared:
                    last_gathered[:] = [features]
                self.add_region(f"{name} (tokens)", region, features.numel())
                return features

            return add_tokens

        layers = [f"{sequence.stack}.{name}" for name, _ in model.get_submodule(sequence.stack).named_children()]
        inputs = {layers[0]: adding(layers[0], split_tokens)}
        inputs |= {name: adding(name, gather_replicated_tokens) for name in sequence.replicated_modules}
        outputs = {layers[-1]: adding(layers[-1], gather_replicated_tokens)}
        outputs |= {name: adding(name, split_tokens) for name in sequence.replicated_modules}
        handles = [map_input(model.get_submodule(name), change) for name, change in inputs.items()]
        handles += [map_output(model.get_submodule(name), change) for name, change in outputs.items()]
        for name in sequence.gather_inputs:
            handles.append(map_input(model.get_submodule(name), adding(name, gather_tokens, shared=True)))
        return handles


def update_collectives(
    plan: Plan, dp_size: int, item: int, bucket: int = LARGEST_BUCKET, owned: bool = False
) -> list[Collective]:
    """Return the collectives of one update: partial gradients summed, gradients averaged over replicas, the norm.

    `item` is the size of a gradient element in bytes: 4 where there are fp32 master weights. `bucket` is the most
    elements of gradients that are sent at once; `owned`: each goes to its owner only (ZeRO 2), at every micro batch.
    """
    found = []
    phase = "backward" if owned else "update"
    partial = [record for record in plan.parameters if record.gradient_rule is GradientRule.PARTIAL]
    if plan.tp_size > 1 and partial:
        elements = len(partial) + sum(product(record.shape) for record in partial)
        found.append(Collective("gradients of which ranks have parts", phase, "all_reduce", "tp", elements, item))
    if dp_size > 1:
        found.append(Collective("which parameters were used", phase, "all_reduce", "dp", len(plan.parameters) + 1, 4))
        found += [
            Collective("gradients", phase, "reduce" if owned else "all_reduce", "dp", elements, item)
            for elements in _bucket_sizes(plan, dp_size, bucket, owned)
        ]
    if plan.tp_size > 1:
        found.append(Collective("gradient norm", "update", "all_reduce", "tp", 6, 8))
    if dp_size > 1 and owned:
        found.append(Collective("gradient norm", "update", "all_reduce", "dp", 4, 8))
    return found


def _bucket_sizes(plan: Plan, dp_size: int, bucket: int, owned: bool) -> list[int]:
    """Return the elements of each bucket of gradients, if every parameter has one."""
    records = plan.parameters
    sizes = [product(record.local_shape(plan.tp_size, plan.tp_rank)) for record in records]
    owners = GradientOwners([product(record.shape) for record in records], dp_size if owned else 1, 0)
    owners.assign(range(len(records)))
    summed = [index for index, record in enumerate(records) if record.gradient_rule is GradientRule.PARTIAL]
    order = send_order(range(len(records)), summed if plan.tp_size > 1 else ())
    buckets = fill_buckets(order, sizes.__getitem__, owners.owners.__getitem__, bucket)
    return [sum(sizes[index] for index in indices) for indices in buckets]


@dataclass(frozen=True, slots=True)
class Memory:
    """The bytes on one rank of parameters, gradients, fp32 master weights and optimizer state, without activations."""

    parameters: int
    gradients: int
    masters: int
    optimizer: int

    @property
    def total(self) -> int:
        """The sum in bytes."""
        return self.parameters + self.gradients + self.masters + self.optimizer


def memory_of(plan: Plan, tp_rank: int, item: int, states: int) -> Memory:
    """Return the memory of one rank, for parameters of `item` bytes an element.

    `states` is the number of optimizer state elements for each parameter element, -1 without an optimizer. Parameters
    of 2 bytes have fp32 master weights, and then gradients and optimizer state are fp32 too.
    """
    elements = sum(product(record.local_shape(plan.tp_size, tp_rank)) for record in plan.parameters)
    trained = states >= 0
    has_masters = item < 4 and trained
    state_item = 4 if has_masters else item
    return Memory(
        elements * item,
        elements * state_item if trained else 0,
        elements * 4 if has_masters else 0,
        elements * state_item * max(states, 0),
    )


def product(shape: Iterable[int]) -> int:
    """Return the number of elements of a tensor of this shape."""
    return math.prod(shape)
