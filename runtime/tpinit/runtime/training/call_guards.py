"""Calls of a sharded model that torch and transformers would answer with parts: answered whole, or refused.

Each guard is an attribute of the instance in front of the class's method (docs/calls.md lists them).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from tpinit.reference.errors import TpinitError
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.agreement import RankReport, check_reports, describe_error, gather_reports
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.planning.schema import Plan
from tpinit.runtime.training.call_check import CallCheck
from tpinit.runtime.training.whole_model import cut_state_dict, gather_state_dict

__all__ = ["REFUSED", "guard_calls"]

_RESIZE = "change the model before initialize; a sharded one keeps its size"
_DTYPE = "set bf16 or fp16 in the config, or cast the model before initialize"

REFUSED: dict[str, str] = {
    "resize_token_embeddings": _RESIZE,
    "resize_position_embeddings": _RESIZE,
    "set_input_embeddings": _RESIZE,
    "set_output_embeddings": _RESIZE,
    "prune_heads": _RESIZE,
    "init_weights": "draw the weights before initialize, or use tpinit.runtime.from_config",
    "post_init": "draw the weights before initialize, or use tpinit.runtime.from_config",
    "push_to_hub": "call engine.module.save_pretrained(folder) on every rank, and upload the folder from rank 0",
    "merge_and_unload": "save the adapters with engine.module.save_pretrained, and merge them into the unsharded model",
    "unload": "save the adapters with engine.module.save_pretrained, and load the unsharded model without them",
    "add_adapter": "add adapters before initialize",
    "load_adapter": "load adapters before initialize",
    "delete_adapter": "delete adapters before initialize",
    "dequantize": "dequantize the model before initialize",
    "type": _DTYPE,
    "to_empty": "the weights would be lost on this rank only; build a new model and call initialize again",
}
"""Methods that are refused on every module that has them, and what to do instead."""

_CASTS = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32, "double": torch.float64}


class _Guard:
    """A callable in front of one method of a module. A copied module gets a guard of its own."""

    def __init__(self, model: nn.Module, name: str, answer: Callable[..., Any]) -> None:
        self.model = model
        self.name = name
        self.answer = answer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.answer(self.model, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Guard:
        return _Guard(copy.deepcopy(self.model, memo), self.name, self.answer)


def guard_calls(model: nn.Module, plan: Plan, tp: GroupView, check: CallCheck, writes: bool) -> None:
    """Put guards on a model that was sharded by `plan`. `writes`: this rank writes files in `save_pretrained`."""
    for module in model.modules():
        for name, remedy in REFUSED.items():
            if callable(getattr(type(module), name, None)):
                _set(module, name, _refusal(name, remedy))
        if module is not model and callable(getattr(type(module), "save_pretrained", None)):
            _set(module, "save_pretrained", _refusal("save_pretrained", "call engine.module.save_pretrained"))
    for name, dtype in _CASTS.items():
        _set(model, name, _cast(name, dtype))
    for name in ("to", "cpu", "cuda"):
        _set(model, name, _mover(name))

    def load(own: nn.Module, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        return type(own).load_state_dict(own, cut_state_dict(own, plan, state_dict), *args, **kwargs)

    _set(model, "load_state_dict", load)
    if callable(getattr(type(model), "save_pretrained", None)):
        _set(model, "save_pretrained", _saver(plan, tp, check, writes))


def _set(module: nn.Module, name: str, answer: Callable[..., Any]) -> None:
    module.__dict__[name] = _Guard(module, name, answer)


def _refusal(name: str, remedy: str) -> Callable[..., Any]:
    def refuse(module: nn.Module, *_: Any, **__: Any) -> Any:
        raise EngineError(f"{type(module).__name__}.{name}: this model is sharded over a TP group; {remedy}")

    return refuse


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
            f"{dtype} would leave the optimizer with others; {_DTYPE}"
        )


def _mover(name: str) -> Callable[..., Any]:
    def move(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if name in ("cpu", "cuda"):
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
    held, device = next(model.parameters()).device, torch.device(wanted)
    if device.type != held.type or (device.index is not None and device.index != (held.index or 0)):
        raise EngineError(
            f"{type(model).__name__}.{name}: the model and its process groups are on {held}, not {device}; initialize "
            "chose the device, and a sharded model stays there"
        )


def _saver(plan: Plan, tp: GroupView, check: CallCheck, writes: bool) -> Callable[..., Any]:
    def save(model: nn.Module, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("push_to_hub"):
            raise EngineError(f"save_pretrained(push_to_hub=True): {REFUSED['push_to_hub']}")
        if kwargs.pop("state_dict", None) is not None:
            raise EngineError("save_pretrained(state_dict=...): leave it out; the whole state dict is gathered here")
        check.compare_call("save_pretrained", model)
        state = gather_state_dict(model, plan, tp)
        kwargs.pop("is_main_process", None)
        failure: Exception | None = None
        try:
            if writes:
                type(model).save_pretrained(model, save_directory, *args, state_dict=state, **kwargs)  # type: ignore[attr-defined]  # transformers' method
        except Exception as error:  # any error: the other ranks wait
            failure = error
        reports = gather_reports(RankReport(error=describe_error(failure) if failure else None), tp.control)
        if isinstance(failure, TpinitError):
            raise failure
        check_reports(reports, tp.ranks, "save_pretrained failed")

    return save
