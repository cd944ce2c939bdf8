"""A sharded model that is changed after `initialize`: what may be wrong is refused on all ranks, the rest is right."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune, weight_norm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from tpinit.runtime import initialize
from tpinit.runtime.parallel.forward_scope import running_scope
from transformers.models.llama import modeling_llama

from scenarios.engine import config
from support.own_checks import let_change
from support.pairs import pair
from support.refusals import in_step, refusal_of
from support.tiny_models import build, tokens

LAYER = "model.layers.0"
DOWN, UP = f"{LAYER}.mlp.down_proj", f"{LAYER}.mlp.up_proj"
NORM = f"{LAYER}.input_layernorm"


def ignore(*_: Any) -> None:
    """A hook that changes nothing."""


class Positive(nn.Module):
    """A parametrization."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.abs()


def soft(self: Any, x: torch.Tensor) -> Any:
    """A forward that is wrong on a part of the features."""
    return self.down_proj(self.up_proj(x).softmax(-1) * 50)


def at(name: str, change: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda model: change(model.get_submodule(name))


def put(name: str, new: Callable[[Any], nn.Module]) -> Callable[[Any], object]:
    parent, _, key = name.rpartition(".")
    return lambda model: setattr(model.get_submodule(parent), key, new(model.get_submodule(name)))


def lora(model: Any) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=2, target_modules=["up_proj"]), model)


def patch_class(model: Any) -> None:
    """Replace the forward of a class of blocks, for this model alone: by a subclass of it."""
    kind = type(model.get_submodule(f"{LAYER}.mlp"))
    kind.forward = soft  # type: ignore[method-assign]


def swap_data(one: Any) -> None:
    one.weight.data = torch.zeros(3, 5)


def new_parameter(one: Any) -> None:
    one.weight = nn.Parameter(one.weight.detach().clone())


def patch(owner: Any, name: str) -> Callable[[Any], object]:
    """Put another function in the place of one that a forward looks up by its name."""
    old = vars(owner)[name]

    def new(*args: Any, **kwargs: Any) -> Any:
        return old(*args, **kwargs)

    return lambda _: setattr(owner, name, new)


class Mode(TorchFunctionMode):
    """Changes nothing."""

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """Changes nothing."""

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


REFUSED: dict[str, Callable[[Any], object]] = {
    "hook on a row-parallel layer": at(DOWN, lambda one: one.register_forward_hook(ignore)),
    "pre-hook on a row-parallel layer": at(DOWN, lambda one: one.register_forward_pre_hook(ignore)),
    "hook on a column-parallel layer": at(UP, lambda one: one.register_forward_hook(ignore, with_kwargs=True)),
    "backward hook": at(UP, lambda one: one.register_full_backward_hook(ignore)),
    "backward pre-hook": at(UP, lambda one: one.register_full_backward_pre_hook(ignore)),
    "hook on an activation": at(f"{LAYER}.mlp.act_fn", lambda one: one.register_forward_hook(ignore)),
    "gradient hook": at(UP, lambda one: one.weight.register_hook(ignore)),
    "accumulated": at(UP, lambda one: one.weight.register_post_accumulate_grad_hook(ignore)),
    "forward of a layer": at(DOWN, lambda one: setattr(one, "forward", functools.partial(nn.Linear.forward, one))),
    "call of a layer": at(DOWN, lambda one: setattr(one, "_call_impl", one.forward)),
    "forward of a block": at(
        f"{LAYER}.mlp",
        lambda one: setattr(
            one, "forward", types.MethodType(lambda s, x: s.down_proj(s.up_proj(x).softmax(-1) * 50), one)
        ),
    ),
    "class of a layer": at(DOWN, lambda one: setattr(one, "__class__", nn.Linear)),
    "region of a layer": at(DOWN, lambda one: setattr(one, "tp_region_output", None)),
    "new linear": put(DOWN, lambda old: nn.Linear(old.in_features, old.out_features, bias=False)),
    "new block": put(f"{LAYER}.mlp", lambda old: nn.Identity()),
    "new module": lambda model: model.add_module("value_head", nn.Linear(4, 1)),
    "removed layer": lambda model: model.model.layers.pop(1),
    "adapter": lora,
    "parametrization": at(UP, lambda one: nn.utils.parametrize.register_parametrization(one, "weight", Positive())),
    "weight_norm": at(UP, parametrizations.weight_norm),
    "old weight_norm": at(UP, weight_norm),
    "prune": at(UP, lambda one: prune.l1_unstructured(one, "weight", amount=0.5)),
    "weight_norm of a whole layer": at(NORM, lambda one: weight_norm(one, dim=None)),
    "parameter": at(NORM, new_parameter),
    "shape": at(NORM, swap_data),
    "dtype of a module": at(LAYER, lambda one: one.half()),
    "dtype of a layer": at(DOWN, lambda one: one.to(torch.float64)),
    "device": at(NORM, lambda one: one.to("meta")),
    "hooks of tpinit": lambda model: model._forward_hooks.clear(),
    "global hook": lambda _: register_module_forward_hook(ignore),
    "class of a block": patch_class,
    "function of torch": patch(nn.functional, "silu"),
    "function of transformers": patch(modeling_llama, "apply_rotary_pos_emb"),
    "mode": lambda _: Mode().__enter__(),
    "mode of operators": lambda _: DispatchMode().__enter__(),  # type: ignore[no-untyped-call]  # as its base
}


def refuse_changes(rank: int) -> dict[str, tuple[str, bool]]:
    """Return, for each change, the error of the next forward, and whether the ranks still answer each other."""
    ids, results = tokens(), {}
    block = type(build().model.layers[0].mlp)
    forward, silu, rotary = block.forward, nn.functional.silu, modeling_llama.apply_rotary_pos_emb
    for case, change in REFUSED.items():
        _, engine = pair()
        undone: list[Any] = []

        def run(change: Any = change, engine: Any = engine, undone: list[Any] = undone) -> None:
            undone.append(change(engine.module))
            engine(input_ids=ids, labels=ids)

        try:
            results[case] = (refusal_of(run), in_step(rank) and running_scope() is None)
        finally:
            block.forward = forward  # type: ignore[method-assign]
            nn.functional.silu, modeling_llama.apply_rotary_pos_emb = silu, rotary
            if case == "global hook":
                undone[0].remove()
            if case.startswith("mode"):
                undone[0].__exit__(None, None, None)
    return results


def refuse_a_change_on_one_rank(rank: int) -> tuple[str, bool]:
    """Change the model on rank 1 alone."""
    ids = tokens()
    _, engine = pair()
    if rank == 1:
        engine.module.get_submodule(DOWN).register_forward_hook(ignore)
    return refusal_of(lambda: engine(input_ids=ids, labels=ids)), in_step(rank)


def wrap_forward(one: Any) -> None:
    one.forward = functools.partial(checkpoint, one.forward, use_reentrant=False)


def scale_gradient(grad: torch.Tensor) -> torch.Tensor:
    return grad * 2


LEGAL: dict[str, Callable[[Any], object]] = {
    "nothing": lambda _: None,
    "hook on the model": lambda model: model.register_forward_hook(ignore),
    "hook on a block": at(f"{LAYER}.mlp", lambda one: one.register_forward_hook(lambda _, __, output: output * 1.5)),
    "backward hook on a layer": at(LAYER, lambda one: one.register_full_backward_hook(ignore)),
    "hook on a norm": at(NORM, lambda one: one.register_forward_pre_hook(ignore)),
    "hook on the head": at("lm_head", lambda one: one.register_forward_hook(lambda _, __, output: output.softmax(-1))),
    "gradients of the inputs": lambda model: model.enable_input_require_grads(),
    "gradient hook on a norm": at(NORM, lambda one: one.weight.register_hook(scale_gradient)),
    "checkpointing": lambda model: model.gradient_checkpointing_enable({"use_reentrant": False}),
    "forward of a layer": at(LAYER, wrap_forward),
    "wrapped layer": put(LAYER, checkpoint_wrapper),
    "compiled layer": put(LAYER, lambda old: torch.compile(old, backend="eager")),
    "frozen": at(NORM, lambda one: one.requires_grad_(False)),
    "frozen layer": at(DOWN, lambda one: one.requires_grad_(False)),
    "new values": at(NORM, lambda one: one.weight.data.mul_(1.5)),
    "new buffer": lambda model: model.model.rotary_emb.register_buffer("extra", torch.zeros(2)),
}


def in_a_mode_of_torch(rank: int) -> tuple[float, int]:
    """Count operations in a mode of torch; return how far the loss is off, and the count."""
    ids = tokens()
    whole, engine = pair()
    with FlopCounterMode(display=False) as counter:
        loss = engine(input_ids=ids, labels=ids).loss

    gap = float((loss - whole(input_ids=ids, labels=ids).loss).abs().detach())
    return gap, counter.get_total_flops()


def allow_changes(rank: int) -> dict[str, float]:
    """Return, for each legal change, how far the loss and the gradient of a norm are from the unsharded model's."""
    ids, gaps = tokens(), {}
    for case, change in LEGAL.items():
        whole, engine = pair()
        found: list[list[torch.Tensor]] = []
        for run, model in ((whole.train(), whole), (engine.train(), engine.module)):
            change(model)
            loss = run(input_ids=ids, labels=ids).loss
            loss.backward()
            found.append([loss.detach(), model.model.norm.weight.grad])
        gaps[case] = max(float((one - other).abs().max()) for one, other in zip(*found, strict=True))
    return gaps


def what_a_change_does_unseen(rank: int) -> dict[str, float]:
    """The control: return how far the loss is off after two changes if nothing looks for them."""
    ids, gaps = tokens(), {}
    for case in ("forward of a layer", "forward of a block"):
        whole, engine = pair()
        let_change(engine)
        REFUSED[case](whole)
        if case == "forward of a block":
            REFUSED[case](engine.module)
        else:  # a plain linear runs on this rank's part
            engine.module.get_submodule(DOWN).tp_region_output = None
        losses = [run(input_ids=ids, labels=ids).loss.detach() for run in (whole, engine)]
        gaps[case] = float((losses[0] - losses[1]).abs())
    return gaps


def change_a_copy(rank: int) -> dict[str, str]:
    """Copy a sharded model deeply: the copy runs, and is checked from its first forward on."""
    ids = tokens()
    engine, *_ = initialize(model=build(), config=config())
    twin: Any = copy.deepcopy(engine.module)
    results = {"first": refusal_of(lambda: twin(input_ids=ids))}
    twin.get_submodule(DOWN).register_forward_hook(ignore)
    results["changed"] = refusal_of(lambda: twin(input_ids=ids))
    results["original"] = refusal_of(lambda: engine(input_ids=ids))
    return results


def second_derivatives(rank: int) -> dict[str, Any]:
    """Differentiate a gradient: of the last hidden states, behind which are the head and the loss, and of inputs."""
    whole, engine = pair()
    ids, results = tokens(), {}

    def penalty(model: Any, at: int) -> torch.Tensor:
        output = model(input_ids=ids, labels=ids, output_hidden_states=True)
        (grad,) = torch.autograd.grad(output.loss, output.hidden_states[at], create_graph=True)
        return 10 * grad.pow(2).sum()

    for place, at in (("last hidden states", -1), ("embeddings", 0)):
        results[place] = refusal_of(lambda at=at: penalty(engine.module, at).backward())  # type: ignore[misc]
        ratio = float(penalty(engine.module, at).detach()) / float(penalty(whole, at).detach())
        results[f"{place}, first"] = abs(ratio - 1)  # the first derivatives are right
    return {**results, "in step": in_step(rank)}
