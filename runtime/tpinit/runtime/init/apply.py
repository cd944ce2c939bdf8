"""Apply a plan to a model: replace the data of each parameter by this rank's part, and convert the layers and blocks.

Every Parameter object keeps its identity, name, `requires_grad`, ties and hooks: only its data is replaced. So an
optimizer that was built over the full parameters holds the sharded ones afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.distributed import ProcessGroup
from tpinit.runtime.parallel import (
    LINEAR_CLASSES,
    LayerKind,
    RngTracker,
    TPRegionInput,
    VocabParallelHead,
    convert_embedding,
    convert_experts,
    convert_module,
    enable_loss_parallel,
    fuse_columns,
    gather_around,
    gather_tokens,
    guard_experts,
    map_input,
    reduce_output_grad,
    shard_tokens,
    watch_tokens,
    zero_in_forward,
)
from tpinit.runtime.parallel.blocks import patch_block
from tpinit.runtime.parallel.cache_parts import guard_caches
from tpinit.runtime.parallel.forward_scope import ForwardScope, scope_of
from tpinit.runtime.parallel.guarded import guard_parameters
from tpinit.runtime.parallel.outputs import gather_output_attentions
from tpinit.runtime.planning.build import adapter_of_dropout
from tpinit.runtime.planning.schema import LayerPlan, ParameterPlan, Plan, SequencePlan
from tpinit.runtime.slicing import local_part

__all__ = ["LocalPart", "apply_plan", "convert_layers"]

LocalPart = Callable[[ParameterPlan, nn.Parameter], torch.Tensor]


def apply_plan(
    model: nn.Module,
    plan: Plan,
    group: ProcessGroup | None,
    dtype: torch.dtype | None,
    device: torch.device,
    part_of: LocalPart | None = None,
) -> None:
    """Shard `model` in place by `plan`, cast its floating-point parameters to `dtype`, move it to `device`.

    `dtype` None keeps each parameter's dtype. Buffers keep theirs: rotary tables in half precision would change what
    the model computes. `part_of` returns this rank's part of a parameter, in memory of its own; without it the part is
    sliced from the parameter. The plan was checked before, so no user error is raised here. Issues no collective.
    """
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for record in plan.parameters:
            parameter = parameters[record.name]
            if part_of is not None:
                part = part_of(record, parameter)
            else:
                part = local_part(parameter.data, record, plan.tp_size, plan.tp_rank)
            if dtype is not None and parameter.is_floating_point():
                part = part.to(dtype)
            if record.dim is not None and part_of is None:
                # A copy: a view would keep the memory of the full parameter.
                part = part.clone(memory_format=torch.contiguous_format)
            parameter.data = part
    if any(tensor.device != device for tensor in (*parameters.values(), *model.buffers())):
        model.to(device)
    if group is not None:
        convert_layers(model, plan, group)


def convert_layers(model: nn.Module, plan: Plan, group: ProcessGroup) -> None:
    """Make every module of the plan a parallel module. Its parameters are already sharded."""
    scope = ForwardScope(model)
    gather_output_attentions(scope, group)
    guard_caches(scope, group)
    region_input = TPRegionInput(group)
    draws_random = any(layer.draws_random for layer in plan.layers) or any(one.draws_random for one in plan.sequences)
    rng = RngTracker(model, plan.tp_rank) if draws_random else None
    for layer in plan.layers:
        _convert(model, layer, plan, group, region_input, rng if layer.draws_random else None)
        if layer.kind in (*LINEAR_CLASSES, LayerKind.EMBEDDING):
            guard_parameters(model.get_submodule(layer.module), layer.module, scope_of(model))
        elif layer.kind is LayerKind.EXPERTS:
            prefix = f"{layer.module}."
            sharded = [name for record in plan.parameters if record.dim is not None for name in record.names]
            paths = [name.removeprefix(prefix) for name in sharded if name.startswith(prefix)]
            guard_experts(model.get_submodule(layer.module), layer.module, paths, scope_of(model))
    if rng is not None:
        _share_adapter_dropout(model, plan, rng)
    for names in plan.fused_column_groups():
        fuse_columns([model.get_submodule(name) for name in names], group)
    for block in plan.blocks:
        patch_block(model.get_submodule(block.module), block.local(plan.tp_rank))
        if block.first_rank_only and plan.tp_rank:
            zero_in_forward(model.get_submodule(block.module), block.first_rank_only)
    for sequence in plan.sequences:
        _shard_tokens(model, sequence, group, rng if sequence.draws_random else None)
    if plan.sequences:
        watch_tokens(model, scope)


def _share_adapter_dropout(model: nn.Module, plan: Plan, rng: RngTracker) -> None:
    """Let dropout of adapters draw masks that are equal on all ranks, or those of a rank where features are sharded.

    In a stack with sharded tokens a rank draws from its own state throughout.
    """
    kinds = {layer.module: layer.kind for layer in plan.layers}
    stacks = tuple(f"{sequence.stack}." for sequence in plan.sequences)
    for name, module in model.named_modules():
        adapter = adapter_of_dropout(name, module)
        if adapter is None or name.startswith(stacks):
            continue
        if kinds.get(f"{adapter}.base_layer") is LayerKind.ROW:
            rng.own_outside(module)
        else:
            rng.share_inside(module)


def _shard_tokens(model: nn.Module, sequence: SequencePlan, group: ProcessGroup, rng: RngTracker | None) -> None:
    """Shard the tokens between the sharded regions of one stack of layers (sequence parallelism)."""
    layers = list(model.get_submodule(sequence.stack).children())
    shard_tokens(sequence.stack, layers, group, rng)
    gathered = TPRegionInput(group, gather_tokens)
    for name in sequence.gather_inputs:
        map_input(model.get_submodule(name), gathered)
    for name in sequence.replicated_modules:
        gather_around(model.get_submodule(name), group)


def _convert(
    model: nn.Module,
    layer: LayerPlan,
    plan: Plan,
    group: ProcessGroup,
    region_input: TPRegionInput,
    rng: RngTracker | None,
) -> None:
    """Make one module of the plan a parallel module. `region_input` is the input copy that all layers share."""
    module = model.get_submodule(layer.module)
    if layer.kind in LINEAR_CLASSES:
        shared = region_input if layer.reduce_input_grad else None
        convert_module(module, layer.kind, group, shared, layer.slices, rng, layer.scatter_output)
    elif layer.kind is LayerKind.SHARED_OUTPUT:
        reduce_output_grad(module, group)
    elif layer.kind is LayerKind.EXPERTS:
        convert_experts(module, region_input, group)
    else:
        assert layer.kind is LayerKind.EMBEDDING
        assert isinstance(module, nn.Embedding)
        ((offset, length),) = layer.slices[plan.tp_rank]
        convert_embedding(module, offset, length, group)
    if isinstance(module, VocabParallelHead):
        ((offset, length),) = layer.slices[plan.tp_rank]
        vocabulary = sum(size for ((_, size),) in layer.slices)
        enable_loss_parallel(model, module, offset, length, vocabulary, group)
