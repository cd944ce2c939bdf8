"""The optimizers and schedules that a config may name, and the legal values of their parameters.

DeepSpeed's own types are listed here; every other class of torch.optim and torch.optim.lr_scheduler is legal by its
name, with the parameters of its signature.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import optim
from torch.optim import lr_scheduler

__all__ = ["REFUSED_TYPES", "Check", "ComponentType", "component_types"]


@dataclass(frozen=True, slots=True)
class Check:
    """What a value must be: `accepts` answers, `expected` says it in words."""

    accepts: Callable[[Any], bool]
    expected: str


@dataclass(frozen=True, slots=True)
class ComponentType:
    """A type: its spelling, the check of each of its parameters, and the parameters that must be given."""

    name: str
    params: Mapping[str, Check]
    required: tuple[str, ...] = ()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(item is None or _is_number(item) for item in value)


def _is_whole(value: Any) -> bool:
    """Return whether a value is a whole number: JSON's 1e3 too."""
    return _is_number(value) and value == int(value)


_NUMBER = Check(_is_number, "a number")
_NUMBERS = Check(lambda value: _is_number(value) or _is_list(value), "a number, or a list of one for each group")
_PAIR = Check(lambda value: _is_list(value) and len(value) == 2 and None not in value, "two numbers")
_LIST = Check(_is_list, "a list of numbers")
_FLAG = Check(lambda value: isinstance(value, bool), "true or false")
_TEXT = Check(lambda value: isinstance(value, str), "a text")
_ITERATION = Check(lambda value: type(value) is int and value >= -1, "an integer of at least -1")
_STEPS = Check(lambda value: _is_whole(value) and value >= 0, "an integer of at least 0")
_PERIOD = Check(lambda value: _is_whole(value) and value >= 1, "an integer of at least 1")
_FORM = Check(lambda value: value in ("log", "linear"), '"log" or "linear"')
_ANY = Check(lambda value: isinstance(value, (bool, str)) or _NUMBERS.accepts(value), "a number, a text or a list")

_ADAM = {
    **dict.fromkeys(("lr", "eps", "weight_decay"), _NUMBER),
    "betas": _PAIR,
    **dict.fromkeys(("bias_correction", "adam_w_mode", "torch_adam", "amsgrad"), _FLAG),
    **dict.fromkeys(("set_grad_none", "fp32_optimizer_states", "fused", "foreach", "adamw_mode"), _FLAG),
}
_MUON = {
    **dict.fromkeys(("lr", "muon_lr", "adam_lr", "momentum", "weight_decay", "eps"), _NUMBER),
    "betas": _PAIR,
    "adam_w_mode": _FLAG,
    "fp32_optimizer_states": _FLAG,
    "ns_method": Check(lambda value: value in ("gram", "standard"), '"gram" or "standard"'),
    "per_head_muon": Check(lambda value: value is False, "false: a matrix is orthogonalized whole"),
}
_LION = {"lr": _NUMBER, "weight_decay": _NUMBER, "betas": _PAIR, "set_grad_none": _FLAG}
_WARMUP = {
    "warmup_min_lr": _NUMBERS,
    "warmup_max_lr": _NUMBERS,
    "warmup_num_steps": _STEPS,
    "warmup_type": _FORM,
    "last_batch_iteration": _ITERATION,
}
_COSINE = {
    "total_num_steps": _PERIOD,
    "warmup_min_ratio": _NUMBER,
    "cos_min_ratio": _NUMBER,
    **{name: _WARMUP[name] for name in ("warmup_num_steps", "warmup_type", "last_batch_iteration")},
}
_CYCLE = {
    **dict.fromkeys(("cycle_min_lr", "cycle_max_lr", "cycle_min_mom", "cycle_max_mom"), _NUMBERS),
    **dict.fromkeys(("decay_lr_rate", "decay_mom_rate", "decay_step_size"), _NUMBER),
    "cycle_first_step_size": Check(lambda value: _is_number(value) and value > 0, "a number above 0"),
    "cycle_second_step_size": Check(lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
    **dict.fromkeys(("cycle_first_stair_count", "cycle_second_stair_count"), _STEPS),
    "cycle_momentum": _FLAG,
    "last_batch_iteration": _ITERATION,
}
_RANGE_TEST = {
    "lr_range_test_min_lr": _NUMBERS,
    "lr_range_test_step_size": _PERIOD,
    "lr_range_test_step_rate": _NUMBER,
    "lr_range_test_staircase": _FLAG,
    "last_batch_iteration": _ITERATION,
}
_OWN: dict[str, tuple[ComponentType, ...]] = {
    "optimizer": (
        ComponentType("Adam", _ADAM),
        ComponentType("AdamW", _ADAM),
        ComponentType("Lion", _LION),
        ComponentType("Muon", _MUON),
    ),
    "scheduler": (
        ComponentType("WarmupLR", _WARMUP),
        ComponentType("WarmupDecayLR", {"total_num_steps": _PERIOD, **_WARMUP}, ("total_num_steps",)),
        ComponentType("WarmupCosineLR", _COSINE, ("total_num_steps",)),
        ComponentType("OneCycle", _CYCLE, ("cycle_min_lr", "cycle_max_lr")),
        ComponentType("LRRangeTest", _RANGE_TEST),
    ),
}

_OWN_OPTIMIZER = "pass an optimizer of your own to initialize, or use AdamW"
_COMPRESSED = ("it sends compressed gradients, which changes every update", "use AdamW")
_MUP = ("it is in the package mup", _OWN_OPTIMIZER)
_OBJECTS = ("its parameters are functions or schedules, which JSON can't hold", "pass lr_scheduler to initialize")
REFUSED_TYPES: dict[str, dict[str, tuple[str, str]]] = {
    "optimizer": {
        **dict.fromkeys(("onebitadam", "zerooneadam", "onebitlamb"), _COMPRESSED),
        "lamb": ("torch has no LAMB", _OWN_OPTIMIZER),
        **dict.fromkeys(("muadam", "muadamw", "musgd"), _MUP),
        "lbfgs": ("it runs the model several times in one step", "use AdamW"),
        "sparseadam": ("it takes sparse gradients only", "use Adam"),
    },
    "scheduler": {
        "reducelronplateau": ("its step needs a measured value", "step a schedule of your own"),
        **dict.fromkeys(("lambdalr", "multiplicativelr", "sequentiallr", "chainedscheduler"), _OBJECTS),
        "lrscheduler": ("it is the base class of schedules", "name one of them"),
    },
}
"""Types that DeepSpeed or torch has and a config can't name here, in lower case by section: why, and the fix."""


@cache
def component_types(section: str) -> dict[str, ComponentType]:
    """Return the legal types of a section, "optimizer" or "scheduler", by their names in lower case."""
    own = {kind.name.lower(): kind for kind in _OWN[section]}
    if section == "optimizer":
        classes = [value for value in vars(optim).values() if _is_subclass(value, optim.Optimizer)]
        skipped = "params"
    else:
        classes = [getattr(lr_scheduler, name) for name in lr_scheduler.__all__]
        skipped = "optimizer"
    of_torch = {
        kind.__name__.lower(): _of_signature(kind, skipped)
        for kind in classes
        if kind.__name__.lower() not in REFUSED_TYPES[section]
    }
    return {**of_torch, **own}


def _is_subclass(value: object, parent: type) -> bool:
    return isinstance(value, type) and issubclass(value, parent) and value is not parent


def _of_signature(kind: type, skipped: str) -> ComponentType:
    parameters = [one for one in inspect.signature(kind).parameters.values() if one.name != skipped]
    return ComponentType(
        kind.__name__,
        {one.name: _check_like(one.default) for one in parameters},
        tuple(one.name for one in parameters if one.default is one.empty),
    )


def _check_like(default: Any) -> Check:
    """Return the check of values like a parameter's default; None and an absent default allow several types."""
    if isinstance(default, bool):
        return _FLAG
    if isinstance(default, (int, float)):
        return _NUMBERS
    if isinstance(default, tuple):
        return _PAIR if len(default) == 2 and None not in default else _LIST
    return _TEXT if isinstance(default, str) else _ANY
