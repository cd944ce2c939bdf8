"""Calls of a sharded model that torch and transformers would answer with parts: answered whole, or refused.

Each guard is an attribute of the instance in front of the class's method. `call_table` lists all calls.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from math import prod
from typing import Any, NoReturn

import torch
from torch import nn
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.internals.torch_private import (
    PlainDispatchMode,
    is_mutable,
    parameters_of,
    storage_key,
    tree_leaves,
)
from tpinit.runtime.parallel.forward_scope import pickle_error
from tpinit.runtime.planning.schema import Plan
from tpinit.runtime.training.call_check import CallCheck
from tpinit.runtime.training.call_table import DTYPE, REFUSED, STRUCTURE
from tpinit.runtime.training.compile_guard import guard_compile
from tpinit.runtime.training.local_shards import mark_model_state
from tpinit.runtime.training.lone_layers import refuse_lone_calls
from tpinit.runtime.training.pickled import reduced
from tpinit.runtime.training.save_whole import save_whole
from tpinit.runtime.training.whole_model import load_whole_or_part, records_below, state_or_whole

__all__ = ["guard_calls", "guard_engine", "write_once"]

_log = logging.getLogger("tpinit")

_CASTS = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32, "double": torch.float64}
_DEVICES = ("cpu", "cuda", "xpu", "ipu", "mtia")
_KNOWN = "tp_known_parameters"  # the attribute with a module's parameters at initialize, by name
_STRUCTURAL = ("add_module", "register_module", "register_parameter", "set_submodule")


class _Guard:
    """A callable in front of one method of a module. A copied module gets a guard of its own."""

    def __init__(self, model: nn.Module, name: str, answer: Callable[..., Any]) -> None:
        self.model = model
        self.name = name
        self.answer = answer

    @property
    def __wrapped__(self) -> Any:
        return getattr(type(self.model), self.name).__get__(self.model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.answer(self.model, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Guard:
        return type(self)(copy.deepcopy(self.model, memo), self.name, self.answer)

    def __reduce_ex__(self, _: Any) -> NoReturn:
        """Raise EngineError: the module, of which this is an attribute, is pickled."""
        raise pickle_error()


class _GuardOfWhole(_Guard):
    """A guard of a model of TP size 1, which is pickled without it."""

    def __reduce_ex__(self, _: Any) -> Any:
        """Pickle as the method of the model's class."""
        return getattr, (self.model, self.name)


def write_once(model: nn.Module, data_index: int) -> None:
    """Let the data-parallel ranks of a model of TP size 1 call `save_pretrained`: rank 0 of them writes."""
    if data_index and callable(getattr(type(model), "save_pretrained", None)):
        model.__dict__["save_pretrained"] = _GuardOfWhole(model, "save_pretrained", _leave_to_first)


def _leave_to_first(_: nn.Module, save_directory: Any, *__: Any, **___: Any) -> None:
    _log.info("save_pretrained: the first data-parallel rank writes %s", save_directory)


def guard_calls(model: nn.Module, plan: Plan, tp: GroupView, check: CallCheck, first_replica: bool) -> None:
    """Put guards on a model that was sharded by `plan`. The first replica is the TP group that writes files."""
    refuse_lone_calls(model, plan)
    for prefix, module in model.named_modules():
        for name, remedy in REFUSED.items():
            if callable(getattr(type(module), name, None)):
                _set(module, name, _refusal(name, remedy))
        if module is not model and callable(getattr(type(module), "save_pretrained", None)):
            _set(module, "save_pretrained", _refusal("save_pretrained", "call engine.module.save_pretrained"))
        for name, dtype in _CASTS.items():
            _set(module, name, _cast(name, dtype))
        for name in ("to", *_DEVICES):
            _set(module, name, _mover(name))
        _set(module, "apply", _apply)
        _set(module, "register_parameter", _register_parameter)
        module.__dict__[_KNOWN] = dict(parameters_of(module))
        _set(module, "load_state_dict", load_whole_or_part(plan, prefix))
        _guard_counts(module, {name: prod(record.shape) for name, record in records_below(plan, prefix).items()})
    mark_model_state(model, plan)
    _set(model, "__reduce_ex__", reduced(model, plan, tp, check))
    _set(model, "state_dict", state_or_whole(plan, tp, check))
    if callable(getattr(type(model), "save_pretrained", None)):
        _set(model, "save_pretrained", save_whole(plan, tp, check, first_replica))


def guard_engine(engine: nn.Module, model: nn.Module) -> None:
    """Put guards on an engine: its only child is the model, and stays on its device."""
    for name in _STRUCTURAL:
        _set(engine, name, _refusal(name, STRUCTURE))
    guard_compile(engine)
    for name in _DEVICES[2:]:  # the engine has methods for the others
        _set(engine, name, lambda own, *args, name=name: (getattr(model, name)(*args), own)[1])


def _set(module: nn.Module, name: str, answer: Callable[..., Any]) -> None:
    module.__dict__[name] = _Guard(module, name, answer)


def _refusal(name: str, remedy: str) -> Callable[..., Any]:
    def refuse(module: nn.Module, *_: Any, **__: Any) -> Any:
        raise EngineError(f"{type(module).__name__}.{name}: this model is sharded over a TP group; {remedy}")

    return refuse


# --- dtype and device --------------------------------------------------------------------------------------


def _cast(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    def cast(model: nn.Module) -> nn.Module:
        _check_dtype(model, name, dtype)
        return model

    return cast


def _check_dtype(model: nn.Module, name: str, dtype: torch.dtype) -> None:
    held = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if held - {dtype}:
        raise EngineError(
            f"{type(model).__name__}.{name}: its parameters are {', '.join(sorted(map(str, held)))}, and a cast to "
            f"{dtype} would leave the optimizer with others; {DTYPE}"
        )


def _mover(name: str) -> Callable[..., Any]:
    def move(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if name in _DEVICES:
            index = args[0] if args else kwargs.get("device")
            _check_device(model, name, torch.device(name, index) if isinstance(index, int) else index or name)
            return model
        for value in (*args, *kwargs.values()):
            if isinstance(value, (torch.Tensor, torch.dtype)):
                _check_dtype(model, name, value.dtype if isinstance(value, torch.Tensor) else value)
            if isinstance(value, torch.Tensor):
                _check_device(model, name, value.device)
            elif isinstance(value, (str, int, torch.device)) and not isinstance(value, bool) and name == "to":
                _check_device(model, name, value)
        return model

    return move


def _check_device(model: nn.Module, name: str, wanted: str | int | torch.device) -> None:
    tensor = next((tensor for tensor in (*model.parameters(), *model.buffers())), None)
    if tensor is None:
        return
    held, device = tensor.device, torch.device(wanted)
    if device.type != held.type or (device.index is not None and device.index != (held.index or 0)):
        raise EngineError(
            f"{type(model).__name__}.{name}: the model and its process groups are on {held}, not {device}; initialize "
            "chose the device, and a sharded model stays there"
        )


# --- weights -----------------------------------------------------------------------------------------------


class _NoWrites(PlainDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves the base untyped
    """Raises EngineError for an operation that writes to one of the given tensors."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation that writes to no weight."""
        if is_mutable(func):
            for value in tree_leaves((args, kwargs)):
                name = self.names.get(storage_key(value)) if isinstance(value, torch.Tensor) else None
                if name is not None:
                    raise EngineError(
                        f"apply: the function writes to {name} ({func}), and this rank may hold a part of it: the "
                        "size of a part and random numbers differ from the whole weight's. Set weights before "
                        "initialize, or give a whole state dict to engine.module.load_state_dict"
                    )
        return func(*args, **(kwargs or {}))


def _apply(module: nn.Module, function: Callable[[nn.Module], None]) -> nn.Module:
    with _NoWrites({storage_key(parameter): name for name, parameter in module.named_parameters()}):
        return type(module).apply(module, function)


def _guard_counts(module: nn.Module, sizes: dict[str, int]) -> None:
    """Let methods that count parameters count those of the whole model. `sizes`: elements of each whole parameter."""

    def count(model: Any, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        embeddings = {f"{name}.weight" for name, inner in model.named_modules() if isinstance(inner, nn.Embedding)}
        return sum(
            sizes.get(name, parameter.numel())
            for name, parameter in model.named_parameters()
            if (parameter.requires_grad or not only_trainable) and not (exclude_embeddings and name in embeddings)
        )

    def trainable(model: Any) -> tuple[int, int]:
        return count(model, only_trainable=True), count(model)

    for name, answer in (("num_parameters", count), ("get_nb_trainable_parameters", trainable)):
        if callable(getattr(type(module), name, None)):
            _set(module, name, answer)
    for name, answer in (("tie_weights", _tie_weights), ("get_adapter_state_dict", _adapter_state)):
        if callable(getattr(type(module), name, None)):
            _set(module, name, answer)


def _adapter_state(model: Any, adapter_name: str | None = None, state_dict: dict[str, Any] | None = None) -> Any:
    if state_dict is None:
        raise EngineError(
            "get_adapter_state_dict: each rank has a part of the adapters; call engine.module.save_pretrained(folder) "
            "on every rank, or give a whole state dict"
        )
    return type(model).get_adapter_state_dict(model, adapter_name, state_dict)


def _tie_weights(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Tie the weights again. Raises EngineError if that would replace a parameter."""
    try:
        return type(model).tie_weights(model, *args, **kwargs)
    except EngineError as error:  # of register_parameter
        raise EngineError(
            "tie_weights: weights that are not tied would become one parameter, which the plan does not know; tie them "
            "before initialize (tie_word_embeddings in the model's config)"
        ) from error


def _register_parameter(module: nn.Module, name: str, param: nn.Parameter | None = None) -> None:
    """Register a parameter that the module had at initialize: assignments call this, and peft in the forward of MoE."""
    if param is None or module.__dict__[_KNOWN].get(name) is not param:
        _refusal("register_parameter", STRUCTURE)(module)
    type(module).register_parameter(module, name, param)
