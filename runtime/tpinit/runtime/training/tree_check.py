"""Before each forward: is the model still the one that `initialize` made?

A hook, a replaced forward, a new module or another parameter may be right on a whole model and wrong on a sharded one,
without a sign. What is known to be right is let through; everything else is refused by name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tpinit.runtime.internals.torch_private import (
    CALL_METHODS,
    attached_hooks,
    call_state,
    children_of,
    parameters_of,
    tensor_hooks,
    tensor_state,
    unwrapped,
)
from tpinit.runtime.internals.transformers_private import captures_outputs
from tpinit.runtime.planning.analysis.attachments import described, global_problems
from tpinit.runtime.planning.analysis.global_code import GlobalCode
from tpinit.runtime.planning.schema import GradientRule, Plan
from tpinit.runtime.training.hook_places import HookPlaces

__all__ = ["TreeCheck", "is_own"]

_SHOWN = 6  # changes in an error
_REGIONS = ("tp_region_input", "tp_region_output", "tp_fused", "tp_rng")
_FULLY_SHARDED = (
    "{name}: fully_shard was applied, and replaced the parameters that the plan and the engine's optimizer hold; "
    "leave it out: engine.backward averages over the data-parallel ranks, as torch.nn.parallel.DistributedDataParallel("
    "engine.module, process_group=engine.groups.dp.group) does in a loop by hand"
)
_BEFORE = "do it before initialize, where planning checks it"


@dataclass(frozen=True, slots=True)
class _Before:
    """What a module had when the check was made: its class, hooks, replaced methods, children and parameters."""

    kind: type
    hooks: list[tuple[str, Any]]
    methods: dict[str, Any]
    children: dict[str, nn.Module | None]
    parameters: dict[str, nn.Parameter | None]

    @staticmethod
    def of(module: nn.Module) -> _Before:
        return _Before(
            type(module),
            attached_hooks(module),
            _methods(module),
            dict(children_of(module)),
            dict(parameters_of(module)),
        )


class TreeCheck:
    """Compares the modules and parameters of a converted model with what they were when this was made.

    These may change: buffers, values, gradients, `requires_grad`, training mode; hooks on modules whose inputs and
    outputs are whole; a forward replaced around whole blocks; wrappers of torch.compile and activation checkpointing.
    """

    def __init__(self, plan: Plan, model: nn.Module | None = None) -> None:
        self._plan = plan
        self._places = HookPlaces(plan)
        self._rules = {name: record.gradient_rule for record in plan.parameters for name in record.names}
        self._modules: list[tuple[str, nn.Module, tuple[Any, ...]]] = []
        if model is not None:
            self._remember(model)

    def _remember(self, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        self._modules = [(name, module, call_state(module)) for name, module in modules.items()]
        self._before = {name: _Before.of(module) for name, module in modules.items()}
        self._regions = [(name, module, _regions(module)) for name, module in modules.items() if any(_regions(module))]
        self._parameters = [(name, parameter, tensor_state(parameter)) for name, parameter in model.named_parameters()]
        self._gradient_hooks = {name: tensor_hooks(parameter) for name, parameter, _ in self._parameters}
        computing = {type(module) for name, module in modules.items() if self._places.runs_on_parts(name)}
        self._functions = GlobalCode(model)
        self._forwards: list[tuple[Any, Any]] = [(kind, kind.forward) for kind in computing]

    def changes(self, model: nn.Module) -> str:
        """Return the changes of `model` that may be wrong, a line each; empty if there are none."""
        if not self._modules:
            self._remember(model)
        found = [f"{name}: {problem}" for name, problem in (*global_problems(), *self._functions.changes())]
        for kind, forward in self._forwards:
            if kind.forward is not forward:
                found.append(f"class {kind.__qualname__}: its forward was replaced: {_BEFORE}")
        found += [
            f"{name}: a region function of this sharded layer was replaced: build a new model, and initialize it again"
            for name, module, regions in self._regions
            if any(one is not other for one, other in zip(_regions(module), regions, strict=True))
        ]
        for place, (name, module, state) in enumerate(self._modules):
            if call_state(module) != state:
                problems = list(self._module_problems(name, module))
                if not problems:
                    self._modules[place] = (name, module, call_state(module))
                    self._before[name] = _Before.of(module)
                found += problems
        for place, (name, parameter, tensor) in enumerate(self._parameters):
            if tensor_state(parameter) != tensor:
                problems = list(self._parameter_problems(name, parameter, tensor))
                if not problems:
                    self._parameters[place] = (name, parameter, tensor_state(parameter))
                found += problems
        wrapped = [name for name, module, _ in self._modules if found and _is_fully_sharded(module)]
        return _text([_FULLY_SHARDED.format(name=wrapped[0] or "the model")] if wrapped else found)

    def __deepcopy__(self, _: dict[int, Any]) -> TreeCheck:
        """Return a check of a copied model, which it reads at its first forward."""
        return TreeCheck(self._plan)

    def _module_problems(self, name: str, module: nn.Module) -> Iterator[str]:
        """Yield what of a module changed and may be wrong."""
        before, shown = self._before[name], name or "the model"
        if type(module) is not before.kind:
            yield f"{shown}: its class was {before.kind.__qualname__} and is {type(module).__qualname__}: {_BEFORE}"
        methods = _methods(module)
        if methods != before.methods and self._places.runs_on_parts(name):
            changed = sorted(key for key in {*methods, *before.methods} if methods.get(key) != before.methods.get(key))
            yield f"{shown}: its {', '.join(changed)} was replaced, and it computes with parts of tensors: {_BEFORE}"
        yield from self._hook_problems(name, module)
        for key in sorted({*children_of(module), *before.children}):
            old, new = before.children.get(key), children_of(module).get(key)
            if old is not new and not (isinstance(new, nn.Module) and unwrapped(new) is old):
                yield _replaced(f"{shown}: its module {key}", old, new)
        for key in sorted({*parameters_of(module), *before.parameters}):
            old_parameter, parameter = before.parameters.get(key), parameters_of(module).get(key)
            if old_parameter is not parameter:
                yield _replaced(f"{shown}: its parameter {key}", old_parameter, parameter)

    def _hook_problems(self, name: str, module: nn.Module) -> Iterator[str]:
        before, now = self._before[name].hooks, attached_hooks(module)
        for kind, function in before:
            if is_own(function) and (kind, function) not in now:
                yield f"{name or 'the model'}: a hook of tpinit was removed: register hooks again, and keep this one"
        for kind, function in now:
            if (kind, function) in before or is_own(function) or captures_outputs(function):
                continue
            if self._places.sees_parts(name, backward="backward" in kind):
                yield (
                    f"{name}: a {kind} ({described(function)}) would see this rank's part of a tensor: {_BEFORE}, or "
                    "register it on the block around this module, whose input and output are whole"
                )

    def _parameter_problems(self, name: str, parameter: nn.Parameter, before: tuple[Any, ...]) -> Iterator[str]:
        now = tensor_state(parameter)
        for label, old, new in zip(("shape", "dtype", "device"), before, now, strict=False):
            if old != new:
                shown = f"{list(old)}, and is {list(new)}" if label == "shape" else f"{old}, and is {new}"
                yield f"{name}: its {label} was {shown}: change the model before initialize"
        if self._rules.get(name) is GradientRule.REPLICATED:
            return
        for kind, function in tensor_hooks(parameter):
            if (kind, function) not in self._gradient_hooks[name] and not is_own(function):
                yield (
                    f"{name}: a {kind} ({described(function)}) would see this rank's part of the gradient: remove it, "
                    "or keep the layer whole (partition_type skip in partition_config)"
                )


def _is_fully_sharded(module: nn.Module) -> bool:
    """Return whether FSDP2's fully_shard was applied to a module. Only a program that imported FSDP can do it."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def _methods(module: nn.Module) -> dict[str, Any]:
    return {key: module.__dict__[key] for key in ("forward", *CALL_METHODS) if key in module.__dict__}


def _regions(module: nn.Module) -> tuple[Any, ...]:
    return tuple(map(module.__dict__.get, _REGIONS))


def is_own(function: Any) -> bool:
    """Return whether a hook is one of this runtime."""
    function = getattr(function, "__wrapped__", getattr(function, "func", function))  # or a partial
    return str(getattr(function, "__module__", "")).startswith("tpinit.runtime.")


def _replaced(what: str, old: object, new: object) -> str:
    if old is None:
        return f"{what} ({type(new).__name__}) was added: {_BEFORE}"
    if new is None:
        return f"{what} ({type(old).__name__}) was removed: {_BEFORE}"
    if isinstance(new, torch.Tensor):
        return f"{what} is another Parameter now, which no optimizer updates: write into it (copy_) instead"
    return f"{what} ({type(old).__name__}) was replaced by a {type(new).__name__}: {_BEFORE}"


def _text(found: list[str]) -> str:
    if not found:
        return ""
    more = [f"  and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    lines = [f"  {line}" for line in found[:_SHOWN]]
    return "\n".join(["the model was changed after initialize, and would be wrong while it is sharded:", *lines, *more])
