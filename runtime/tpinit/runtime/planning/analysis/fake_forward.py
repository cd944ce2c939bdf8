"""Runs a model's forward with the linear layers and expert modules replaced by callbacks.

So a run reads no weight and costs no product with one: the model may be on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from tpinit.runtime.internals.torch_private import (
    BACKWARD_HOOKS,
    CALL_METHODS,
    FORWARD_HOOKS,
    buffers_of,
    children_of,
    is_batch_norm,
    parameters_of,
)
from tpinit.runtime.internals.transformers_private import captures_outputs
from tpinit.runtime.planning.analysis.dropout_off import DropoutDisabled, fixed_host_rng, preserved_rng
from tpinit.runtime.planning.analysis.gates import GatesOpen
from tpinit.runtime.planning.analysis.linears import LinearInfo, find_experts, find_linears
from tpinit.runtime.planning.analysis.no_trace import no_trace
from tpinit.runtime.planning.analysis.off_meta import activation_device, off_meta

__all__ = [
    "HELD_PIECES",
    "ForwardContext",
    "Replacement",
    "forward_context",
    "in_mode",
    "run_fake_forward",
    "without_hooks",
]

_HOOKS = (*FORWARD_HOOKS, *BACKWARD_HOOKS)
HELD_PIECES = "_tp_held"  # attribute of a module in a dry run: which pieces of its parameters the rank holds

LinearStub = Callable[[LinearInfo, torch.Tensor], torch.Tensor]
ExpertsStub = Callable[[str, torch.Tensor], torch.Tensor]
OnReplaced = Callable[[torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Replacement:
    """A parameter or buffer `original`, the attribute `name` of `module`, and the values that a run uses instead."""

    module: nn.Module
    name: str
    original: torch.Tensor
    values: torch.Tensor


@dataclass(slots=True)
class ForwardContext:
    """What every fake forward of one model needs; computed once, and valid until a module of the model changes.

    `linears` and `experts` are the modules that the callbacks replace, by name. `training` is the mode of the runs;
    None leaves each module in its own. `has_dropout` becomes True when a run meets an operation that drops something;
    later runs then replace it. `watched` are the names of the modules whose inputs and outputs a trace records.
    `reading` are the embeddings whose own forward is running. `watches_state`: the code is not known; a trace records
    what the forward keeps, gates are open, and each run begins with the state of the first.
    """

    modules: list[nn.Module]
    linears: dict[str, LinearInfo]
    experts: dict[str, nn.Module]
    embeddings: list[nn.Embedding]
    replacements: list[Replacement]
    training: bool | None = False
    has_dropout: bool = False
    watched: frozenset[str] = frozenset()
    reading: list[nn.Embedding] = field(default_factory=list)
    watches_state: bool = False


def forward_context(
    model: nn.Module, training: bool | None = False, watched: frozenset[str] = frozenset(), opaque: Collection[str] = ()
) -> ForwardContext:
    """Return the context for fake forwards of `model`. Reads the model, changes nothing.

    The linear layers `opaque` run as they are: no callback replaces them.

    Parameters and buffers on the meta device that no callback covers (norms, routers, tables) get random values.
    So do parameters with one element for each feature, on any device: a new norm's weights are all ones, and a plan
    that mixes up the slices of such a weight would pass unnoticed.
    """
    modules = list(model.modules())
    linears, experts = find_linears(model), find_experts(model)
    linears = {name: linear for name, linear in linears.items() if name not in opaque}
    embeddings = [module for module in modules if isinstance(module, nn.Embedding)]
    stubbed = {id(weight) for linear in linears.values() for weight in linear.module.parameters(recurse=False)}
    stubbed |= {id(weight) for module in experts.values() for weight in module.parameters()}
    stubbed |= {id(weight) for module in embeddings for weight in module.parameters()}
    replacements = _replacements(modules, stubbed)
    return ForwardContext(modules, linears, experts, embeddings, replacements, training, watched=watched)


def _replacements(modules: Sequence[nn.Module], stubbed: set[int]) -> list[Replacement]:
    """Return a replacement for every tensor of `modules` that needs one; `stubbed` are the ids of those that do not."""
    generator = torch.Generator().manual_seed(1)
    replacements = []
    for module in modules:
        parameters, buffers = parameters_of(module), buffers_of(module)
        for name, tensor in [*parameters.items(), *buffers.items()]:
            if tensor is None or id(tensor) in stubbed:
                continue
            is_vector = name in parameters and _is_vector(tensor, bool(children_of(module)))
            if name in buffers and is_batch_norm(module) and not tensor.is_meta:
                replacements.append(Replacement(module, name, tensor, tensor))  # a run in training writes to it
            elif tensor.is_meta or is_vector:
                values = torch.zeros(tensor.shape, dtype=tensor.dtype)
                if tensor.is_floating_point():
                    values.normal_(generator=generator)
                values = values.to(activation_device() if tensor.is_meta else tensor.device)
                replacements.append(Replacement(module, name, tensor, values))
    return replacements


def _is_vector(parameter: torch.Tensor, has_children: bool) -> bool:
    """Return whether a parameter is a vector, [n] or [1, n, 1]; beside other modules, one whose elements are equal."""
    if parameter.is_meta or not parameter.dim() or max(parameter.shape) != parameter.numel():
        return False
    if parameter.dim() == 1 and not has_children:
        return True
    return parameter.numel() > 1 and bool((parameter.detach() == parameter.detach().flatten()[0]).all())


def run_fake_forward(
    model: nn.Module,
    inputs: Mapping[str, Any],
    linear_stub: LinearStub,
    experts_stub: ExpertsStub,
    on_replaced: OnReplaced = lambda *_: None,
    context: ForwardContext | None = None,
    traced: bool = False,
) -> Any:
    """Return the output of `model(**inputs)` with callbacks in place of linear layers and expert modules.

    `linear_stub(linear, input)` and `experts_stub(name, hidden_states)` return the outputs of these modules.
    `on_replaced(original, values)` is called for each tensor that other values replace. `context` is the result of
    `forward_context` for this model; without it the model runs in evaluation mode. `traced`: the caller's dispatch mode
    opens gates (`gates`) where the code is not known. Raises what the forward raises.
    """
    context = context or forward_context(model)
    dropout_mode = DropoutDisabled() if context.has_dropout else nullcontext()
    is_watched = context.watches_state and not traced  # a trace does the same itself
    gates = GatesOpen() if is_watched else nullcontext()
    state = no_trace(model) if is_watched else nullcontext()
    mode = in_mode(model, context.training, context.modules)
    stubs = _stubbed(context, linear_stub, experts_stub, on_replaced)
    with state, torch.no_grad(), mode, fixed_host_rng(), dropout_mode, gates, stubs, off_meta(model):
        return model(**inputs)


@contextmanager
def _stubbed(
    context: ForwardContext, linear_stub: LinearStub, experts_stub: ExpertsStub, on_replaced: OnReplaced
) -> Iterator[None]:
    """Replace the forwards of linears, experts and meta embeddings, and tensors without values, for one run."""
    originals: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
        attributes = module.__dict__
        own = {name: attributes.pop(name) for name in ("forward", *CALL_METHODS) if name in attributes}
        originals.append((attributes, own))
        attributes["forward"] = forward

    try:
        for replacement in context.replacements:
            values = _values_for_run(replacement)
            replacement.module.__dict__[replacement.name] = values
            on_replaced(replacement.original, values)
        for linear in context.linears.values():
            replace_forward(linear.module, _linear_forward(linear, linear_stub))
        for name, module in context.experts.items():
            replace_forward(module, _experts_forward(name, experts_stub))
        for embedding in context.embeddings:
            look_up = _embedding_forward(embedding) if embedding.weight.is_meta else embedding.forward
            replace_forward(embedding, _reading(embedding, look_up, context.reading))
        yield
    finally:
        for attributes, own in reversed(originals):
            del attributes["forward"]
            attributes.update(own)
        for replacement in context.replacements:
            replacement.module.__dict__.pop(replacement.name, None)


def _values_for_run(replacement: Replacement) -> torch.Tensor:
    """Return the values of one tensor for one run: a copy of a buffer, which the run may write to; a rank's pieces."""
    module, name, values = replacement.module, replacement.name, replacement.values
    if name not in parameters_of(module):
        values = values.clone()
    pieces = module.__dict__.get(HELD_PIECES, {}).get(name)
    if pieces is None:
        return values
    dim, held = pieces
    return torch.cat([values.narrow(dim, *piece) for piece in held], dim)


def _linear_forward(linear: LinearInfo, linear_stub: LinearStub) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda input, *_, **__: linear_stub(linear, input)


def _experts_forward(name: str, experts_stub: ExpertsStub) -> Callable[..., torch.Tensor]:
    return lambda hidden_states, *_, **__: experts_stub(name, hidden_states)


def _reading(
    embedding: nn.Embedding, forward: Callable[..., torch.Tensor], reading: list[nn.Embedding]
) -> Callable[..., torch.Tensor]:
    """Return a forward during which the embedding is in the list `reading`."""

    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        reading.append(embedding)
        try:
            return forward(*args, **kwargs)
        finally:
            reading.pop()

    return call


def _embedding_forward(module: nn.Embedding) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a lookup without a table: each id gets a ramp of `embedding_dim` values, shifted by 0.1 times the id."""

    def look_up(input: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        ramp = torch.linspace(-1, 1, module.embedding_dim, device=input.device).expand(*input.shape, -1)
        return ramp + input.unsqueeze(-1).to(ramp.dtype) * 0.1

    return look_up


@contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """Remove the hooks of all modules, and restore the model and all RNG states when the context ends.

    The hooks with which transformers records hidden states and attentions stay: a model that has installed them, in a
    forward before, takes its outputs from them.
    """
    devices = dict.fromkeys(parameter.device for parameter in model.parameters())
    with no_trace(model), preserved_rng(*devices):
        for module in model.modules():
            for kind in _HOOKS:
                hooks = module.__dict__[kind]
                if hooks and kind != FORWARD_HOOKS[0]:
                    module.__dict__[kind] = type(hooks)()
                elif hooks:
                    module.__dict__[kind] = type(hooks)(
                        (key, hook) for key, hook in hooks.items() if captures_outputs(hook)
                    )
        yield


@contextmanager
def in_mode(model: nn.Module, training: bool | None, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Set the mode of a model, if it is not None, and restore the mode of each of its `modules` when the context ends.

    Several runs inside one outer context save the cost: an inner one finds the mode set and does nothing.
    """
    modes = [module.training for module in modules]
    if training is None or all(mode is training for mode in modes):
        yield
        return
    model.train(training)
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.__dict__["training"] = mode
