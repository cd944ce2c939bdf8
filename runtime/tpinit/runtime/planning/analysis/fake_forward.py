"""Running a model with stubs in place of its weight matrices: no products, no weights, on the meta device too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from tpinit.runtime.planning.analysis.dropout_off import DropoutDisabled, fixed_host_rng, preserved_rng
from tpinit.runtime.planning.analysis.linears import LinearInfo, find_experts, find_linears

__all__ = ["HELD_PIECES", "ForwardContext", "in_mode", "run_fake_forward", "forward_context", "without_hooks"]

HELD_PIECES = "_tp_held"  # in a module that is rehearsed: which pieces of its parameters a rank has


@dataclass(slots=True)
class ForwardContext:
    """What runs of one model with stubs need to know of it: found once, as long as nobody changes the model.

    `replacements` are the tensors for which others stand in: module, name, the tensor, and the other one. `training` is
    the mode in which they run; `has_dropout` says that chance drops something in it, which it must not.
    """

    modules: list[nn.Module]
    linears: dict[str, LinearInfo]
    experts: dict[str, nn.Module]
    embeddings: list[nn.Embedding]
    replacements: list[tuple[nn.Module, str, torch.Tensor, torch.Tensor]]
    training: bool = False
    has_dropout: bool = False


def forward_context(model: nn.Module, training: bool = False) -> ForwardContext:
    """Return what runs with stubs need. Reads the model, changes nothing.

    The small tensors of a model on the meta device get numbers: norms, routers, tables. And the vectors of norms in
    any case: new ones are all alike, and so would be whatever takes one for another.
    """
    modules = list(model.modules())
    matrices, experts = find_linears(model), find_experts(model)
    embeddings = [module for module in modules if isinstance(module, nn.Embedding)]
    stubbed = {id(one) for matrix in matrices.values() for one in matrix.module.parameters(recurse=False)}
    stubbed |= {id(one) for module in experts.values() for one in module.parameters()}
    stubbed |= {id(one) for module in embeddings for one in module.parameters()}
    generator = torch.Generator().manual_seed(1)
    replacements: list[tuple[nn.Module, str, torch.Tensor, torch.Tensor]] = []
    for module in modules:
        for kind in (module._parameters, module._buffers):
            for name, one in kind.items():
                if one is None or id(one) in stubbed:
                    continue
                vector = kind is module._parameters and one.dim() == 1 and not module._modules
                if kind is module._buffers and isinstance(module, _NormBase) and not one.is_meta:
                    replacements.append((module, name, one, one))  # a run in training writes to it
                elif one.is_meta or vector:
                    real = torch.zeros(one.shape, dtype=one.dtype)
                    if one.is_floating_point():
                        real.normal_(generator=generator)
                    replacements.append((module, name, one, real if one.is_meta else real.to(one.device)))
    return ForwardContext(modules, matrices, experts, embeddings, replacements, training)


def run_fake_forward(
    model: nn.Module,
    inputs: Mapping[str, Any],
    matrix: Callable[[LinearInfo, torch.Tensor], torch.Tensor],
    experts: Callable[[str, torch.Tensor], torch.Tensor],
    stand_in: Callable[[torch.Tensor, torch.Tensor], None] = lambda *_: None,
    context: ForwardContext | None = None,
) -> Any:
    """Run a forward in which `matrix` answers for each weight matrix and `experts` for each block of experts.

    `stand_in` hears of each tensor on the meta device, and of the one with numbers that stands in for it. `context` is
    what `forward_context` returned for this very model; without one it runs in evaluation mode.
    """
    context = context or forward_context(model)
    always = DropoutDisabled() if context.has_dropout else nullcontext()
    mode = in_mode(model, context.training, context.modules)
    with torch.no_grad(), mode, fixed_host_rng(), always, _set(context, matrix, experts, stand_in):
        return model(**inputs)


@contextmanager
def _set(
    context: ForwardContext,
    matrix: Callable[[LinearInfo, torch.Tensor], torch.Tensor],
    experts: Callable[[str, torch.Tensor], torch.Tensor],
    stand_in: Callable[[torch.Tensor, torch.Tensor], None],
) -> Iterator[None]:
    """Put stubs in place of forwards, and tensors with numbers in place of those without, for the time of a run."""
    kept: list[tuple[dict[str, Any], Any]] = []

    def stub(module: nn.Module, forward: Callable[..., Any]) -> None:
        kept.append((module.__dict__, module.__dict__.get("forward")))
        module.__dict__["forward"] = forward

    try:
        for module, name, one, real in context.replacements:
            # What a run may write to, the next one has anew.
            here = real if name in module._parameters else real.clone()
            if name in module.__dict__.get(HELD_PIECES, {}):  # a rehearsal has put a rank's part in its place
                here = torch.cat([here.narrow(0, *held) for held in module.__dict__[HELD_PIECES][name]])
            module.__dict__[name] = here
            stand_in(one, here)
        for one_matrix in context.linears.values():
            stub(one_matrix.module, _matrix_stub(one_matrix, matrix))
        for name, module in context.experts.items():
            stub(module, _experts_stub(name, experts))
        for embedding in context.embeddings:
            if embedding.weight.is_meta:
                stub(embedding, _embedding_stub(embedding))
        yield
    finally:
        for held, forward in reversed(kept):
            if forward is None:
                del held["forward"]
            else:
                held["forward"] = forward
        for module, name, _, _ in context.replacements:
            module.__dict__.pop(name, None)


def _matrix_stub(
    one: LinearInfo, matrix: Callable[[LinearInfo, torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda input, *_, **__: matrix(one, input)


def _experts_stub(name: str, experts: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda hidden_states, *_, **__: experts(name, hidden_states)


def _embedding_stub(module: nn.Embedding) -> Callable[[torch.Tensor], torch.Tensor]:
    def look_up(input: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        ramp = torch.linspace(-1, 1, module.embedding_dim).expand(*input.shape, -1)
        return ramp + input.unsqueeze(-1).to(ramp.dtype) * 0.1

    return look_up


@contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """Keep what the user hung on a model out of what runs inside: hooks do not fire, random numbers stay theirs."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    kept = [(module, kind, getattr(module, kind)) for module in model.modules() for kind in kinds]
    for module, kind, hooks in kept:
        module.__dict__[kind] = type(hooks)()
    try:
        with preserved_rng():
            yield
    finally:
        for module, kind, hooks in kept:
            module.__dict__[kind] = hooks


@contextmanager
def in_mode(model: nn.Module, training: bool, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let a model, of which `modules` are all, be in a mode for several runs: then none of these need see to it."""
    modes = [module.training for module in modules]
    if all(mode is training for mode in modes):
        yield
        return
    model.train(training)
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.__dict__["training"] = mode
