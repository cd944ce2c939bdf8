"""Private names of torch's state dicts and distributed checkpoints, each behind a function that says what it is for."""

from __future__ import annotations

import inspect
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

__all__ = [
    "LAST_RATES",
    "PRIVATE_NAMES",
    "SCHEDULE_BOOKKEEPING",
    "SCHEDULE_STEPS",
    "compares_whole_size",
    "place_in_file",
    "state_metadata",
    "wants_full_state_dict",
    "with_metadata",
]

PRIVATE_NAMES: dict[str, str] = {
    "Tensor.__create_write_items__": "the protocol of tensors in a distributed checkpoint: what a rank writes",
    "Tensor.__create_chunk_list__": "the same: what a rank reads",
    "Tensor.__get_tensor_shard__": "the same: a piece of the tensor",
    "create_default_local_load_plan": "compares the size of a tensor with that of the whole one in the checkpoint",
    "_get_model_state_dict(model, info)": "whether a state dict is made for the option full_state_dict",
    "_get_optim_state_dict(model, optimizers, info)": "the same",
    "state_dict()._metadata": "the versions of the modules in a state dict",
    "filesystem._StorageInfo": "where in its file torch's reader of checkpoints finds a tensor",
    "LRScheduler._last_lr": "by it the state of a schedule of torch is known",
    "LRScheduler._step_count": "a count in the state of a schedule",
    "LRScheduler._get_lr_called_within_step": "bookkeeping of some releases in that state, which decides no rate",
    "LRScheduler._is_initial": "the same",
}
"""Every private name, and private behaviour, of torch's state dicts that the runtime leans on; and what for."""

LAST_RATES = "_last_lr"
"""A key that the state of every schedule of torch has."""
SCHEDULE_STEPS = "_step_count"
"""The number of steps in the state of a schedule, where its release has it."""
SCHEDULE_BOOKKEEPING = ("_get_lr_called_within_step", "_is_initial", SCHEDULE_STEPS, "verbose")
"""What only some releases of torch have in the state of a schedule, and what decides no learning rate."""


def state_metadata(state: Mapping[str, Any]) -> Mapping[str, dict[str, Any]]:
    """Return the entry of each module in a state dict's metadata, by the module's name; empty without metadata."""
    return getattr(state, "_metadata", None) or {}


def with_metadata(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a state dict that has its metadata."""
    copied: Any = OrderedDict(state)
    copied._metadata = getattr(state, "_metadata", None)
    result: dict[str, Any] = copied
    return result


def _callers() -> Iterator[FrameType]:
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


# torch.distributed.checkpoint takes half a second to import: only a program that imported it can call from there.


def compares_whole_size() -> bool:
    """Tell whether the size of a tensor is read to compare it with that of the whole tensor in a checkpoint."""
    planner: Any = sys.modules.get("torch.distributed.checkpoint.default_planner")
    if planner is None:
        return False
    callers = (frame for frame in _callers() if frame.f_code.co_filename != __file__)
    next(callers)  # the function that asks
    return next(callers).f_code is planner.create_default_local_load_plan.__code__


def wants_full_state_dict() -> bool:
    """Tell whether torch asks `state_dict()` for whole tensors: the option full_state_dict."""
    frame = _frame_of("_get_model_state_dict", "_get_optim_state_dict")
    return frame is not None and bool(frame.f_locals["info"].full_state_dict)


def _frame_of(*getters: str) -> FrameType | None:
    """Return the running call of a function of torch.distributed.checkpoint.state_dict; None without one."""
    module: Any = sys.modules.get("torch.distributed.checkpoint.state_dict")
    if module is None:
        return None
    codes = [getattr(module, name).__wrapped__.__code__ for name in getters]  # inside of torch.no_grad
    return next((frame for frame in _callers() if frame.f_code in codes), None)


def place_in_file(name: str, offset: int, length: int) -> Any:
    """Return what torch's index of a checkpoint says about a tensor: its file, first byte and number of bytes."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    return _StorageInfo(name, offset, length)
