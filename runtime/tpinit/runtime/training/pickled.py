"""`pickle` and `torch.save` of a sharded model: this rank's part of it, and the one place where it computes.

Process groups can't be stored. So a pickle holds the values of this rank's part and a description of its place: the
ranks of the TP group, this rank, the plan. It is read by copying the living model of that place, as `copy.deepcopy`
does, and giving the copy the values. Where there is none, a part can't compute, and reading it raises.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.internals.torch_private import (
    CALL_METHODS,
    attached_hooks,
    buffers_of,
    empty_module_state,
    tree_leaves,
)
from tpinit.runtime.internals.transformers_private import captures_outputs
from tpinit.runtime.planning.schema import Plan
from tpinit.runtime.training.call_check import CallCheck
from tpinit.runtime.training.tree_check import is_own

__all__ = ["PickledPlace", "reduced", "restore"]

_COPIES = (copy.copy.__code__, copy.deepcopy.__code__)


@dataclass(frozen=True, slots=True)
class PickledPlace:
    """Where a part of a model computes: its class, its plan and dtypes as a hash, its TP group, and this rank.

    `tp_ranks` and `rank` are numbers of the world; `engine` is the number of the engine that had the part.
    """

    model: str
    plan: str
    tp_ranks: tuple[int, ...]
    rank: int
    engine: int

    def __str__(self) -> str:
        part = self.tp_ranks.index(self.rank) + 1
        ranks = ", ".join(map(str, self.tp_ranks))
        return f"part {part} of {len(self.tp_ranks)} of a {self.model}, of rank {self.rank} in the TP group {ranks}"


@dataclass(frozen=True, slots=True)
class _Living:
    place: PickledPlace
    check: weakref.ref[CallCheck]  # which holds the model, and would keep it alive from here


_living: weakref.WeakKeyDictionary[nn.Module, _Living] = weakref.WeakKeyDictionary()


def reduced(model: nn.Module, plan: Plan, tp: GroupView, check: CallCheck) -> Callable[..., Any]:
    """Return the guard of `__reduce_ex__` of a model that was sharded by `plan`, and let pickles of it be read here.

    Pickle stores what it returns. copy.copy and copy.deepcopy call the same method, and work as before.
    """
    dtypes = [(name, str(parameter.dtype)) for name, parameter in model.named_parameters()]
    text = json.dumps([plan.to_json(), dtypes], sort_keys=True)
    kind = type(model)
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    name = f"{kind.__module__}.{kind.__qualname__}"
    place = PickledPlace(name, digest, tuple(tp.ranks), dist.get_rank(), check.number)
    _living[model] = _Living(place, weakref.ref(check))

    def reduce(model: nn.Module, protocol: Any) -> Any:
        if _caller_of_guard() in _COPIES:
            return type(model).__reduce_ex__(model, protocol)
        return restore, (place, _content(model))

    return reduce


def _caller_of_guard() -> CodeType | None:
    """Return the code that called the guard whose answer calls this."""
    frame = inspect.currentframe()
    for _ in range(3):  # the answer, the guard, who called it
        frame = frame.f_back if frame is not None else None
    return frame.f_code if frame is not None else None


def _content(model: nn.Module) -> dict[str, Any]:
    """Return the values of a model that may change: tensors, modes, attributes. Raises EngineError for hooks."""
    parameters = {name: (one.detach(), one.requires_grad) for name, one in model.named_parameters()}
    modules = {}
    for name, module in model.named_modules():
        _check_plain(name, module)
        for attribute, value in _attributes(module).items():
            if any(isinstance(leaf, (nn.Parameter, nn.Module)) for leaf in tree_leaves(value)):
                raise EngineError(
                    f"pickle: {name or 'the model'}.{attribute} holds a module or parameter beside the model's own, "
                    "which a pickle of a sharded model can't tell apart: delete it before, and set it on what is read"
                )
        modules[name] = (module.training, _attributes(module), dict(buffers_of(module)))
    return {"parameters": parameters, "modules": modules}


def _check_plain(name: str, module: nn.Module) -> None:
    """Raise EngineError for a module with hooks or a forward of its own, which no pickle holds."""
    hooks = [kind for kind, one in attached_hooks(module) if not is_own(one) and not captures_outputs(one)]
    found = [*hooks, *(key for key in ("forward", *CALL_METHODS) if key in module.__dict__)]
    if found:
        raise EngineError(
            f"pickle: {name or 'the model'} has a {found[0]} of its own, and a pickle of a sharded model holds none: "
            "remove it before, and put it on the model that is read"
        )


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of a module without torch's, and without those of `initialize`."""
    state: dict[str, Any] = module.__getstate__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    names = [name for name in state if name not in _TORCHS and not name.startswith("tp_")]
    return {name: state[name] for name in names if not _is_runtimes(state[name])}


_TORCHS = frozenset(empty_module_state())


def _is_runtimes(value: object) -> bool:
    return str(getattr(getattr(value, "__func__", type(value)), "__module__", "")).startswith("tpinit.runtime.")


def restore(place: PickledPlace, content: dict[str, Any]) -> nn.Module:
    """Return a pickled part as a model that computes in its place, beside the living model there.

    Raises EngineError if no model lives here that was sharded by the same plan for the same ranks, or if it has hooks.
    """
    model = _living_at(place)
    for name, module in model.named_modules():
        _check_plain(name, module)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            value, trainable = content["parameters"][name]
            parameter.copy_(value)
            parameter.requires_grad_(trainable)
    for name, module in twin.named_modules():
        module.training, attributes, buffers = content["modules"][name]
        for other in _attributes(module).keys() - attributes.keys():
            del module.__dict__[other]
        module.__dict__.update(attributes)
        before = buffers_of(module)
        before.update({key: _beside(value, before.get(key)) for key, value in buffers.items()})
    return twin


def _beside(value: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    return value if value is None or other is None else value.to(other.device)


def _living_at(place: PickledPlace) -> nn.Module:
    """Return the living model of a place: that of the same engine, or else of the first. All ranks choose alike."""
    checks = [(model, one.place, one.check()) for model, one in _living.items()]
    living = [(model, place) for model, place, check in checks if check is not None and not check.destroyed]
    found = [(other.engine != place.engine, other.engine, model) for model, other in living if _is_same(other, place)]
    if found:
        return min(found, key=lambda one: one[:2])[2]
    here = "; ".join(str(other) for _, other in living) or "no sharded model"
    raise EngineError(
        f"this pickle is {place}, and computes only in that rank, beside a model that initialize has sharded by the "
        f"same plan. Here is {here}. Call initialize with the same model and config before you read it; a file for any "
        "process is what engine.module.save_pretrained(folder) writes, called on every rank"
    )


def _is_same(one: PickledPlace, other: PickledPlace) -> bool:
    return (one.model, one.plan, one.tp_ranks, one.rank) == (other.model, other.plan, other.tp_ranks, other.rank)
