"""The config's `optimizer` and `scheduler` sections: which types and parameters are legal, and their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tpinit.reference.errors import Problem
from tpinit.reference.spellings import nearest, show
from tpinit.runtime.settings.schema import ComponentSettings

__all__ = ["read_component"]

_ADAM = ("lr", "betas", "eps", "weight_decay", "bias_correction", "adam_w_mode", "torch_adam", "amsgrad")
_WARMUP = ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type", "last_batch_iteration")
# The legal parameters of each type, by section and by the type in lower case.
_PARAMS: dict[str, dict[str, tuple[str, ...]]] = {
    "optimizer": {
        "adam": _ADAM,
        "adamw": _ADAM,
        "sgd": ("lr", "momentum", "dampening", "weight_decay", "nesterov"),
    },
    "scheduler": {"warmuplr": _WARMUP, "warmupdecaylr": ("total_num_steps", *_WARMUP)},
}
_TYPES = {"optimizer": ("Adam", "AdamW", "SGD"), "scheduler": ("WarmupLR", "WarmupDecayLR")}
_FLAGS = ("bias_correction", "adam_w_mode", "torch_adam", "amsgrad", "nesterov")
_COUNTS = ("warmup_num_steps", "total_num_steps", "last_batch_iteration")


def read_component(config: Mapping[str, object], key: str, problems: list[Problem]) -> ComponentSettings | None:
    """Return the section `key` ("optimizer" or "scheduler") of a config; None if it is absent or malformed.

    Adds a Problem for everything that is malformed.
    """
    section = config.get(key)
    if section is None:
        return None
    form = f'write {key}: {{"type": "{_TYPES[key][0]}", "params": {{...}}}}'
    if not isinstance(section, Mapping):
        problems.append(Problem(key, show(section), "this must be an object with type and params", form))
        return None
    problems += [
        Problem(f"{key}.{inner}", show(section[inner]), "this key is not known", form)
        for inner in section
        if inner not in ("type", "params")
    ]
    kind, params = section.get("type"), section.get("params") or {}
    legal = _PARAMS[key].get(kind.lower()) if isinstance(kind, str) else None
    if legal is None or not isinstance(kind, str):
        types = ", ".join(_TYPES[key])
        problems.append(Problem(f"{key}.type", show(kind), f"the types that are implemented: {types}", form))
        return None
    if not isinstance(params, Mapping):
        problems.append(Problem(f"{key}.params", show(params), "this must be an object", form))
        return None
    _check_params(key, kind, params, legal, problems)
    return ComponentSettings(kind.lower(), dict(params))


def _check_params(
    key: str, kind: str, params: Mapping[str, object], legal: tuple[str, ...], problems: list[Problem]
) -> None:
    for name, value in params.items():
        path = f"{key}.params.{name}"
        if name not in legal:
            near = nearest(name, legal) or ", ".join(legal)
            problems.append(Problem(path, show(value), f"{kind} has no such parameter", f"did you mean {near}?"))
            continue
        is_legal, expected = _CHECKS.get(name, (_is_number, "a number"))
        if value == "auto" or not is_legal(value):
            problems.append(Problem(path, show(value), f"this must be {expected}", f"write {expected}"))
    if kind.lower() == "warmupdecaylr" and "total_num_steps" not in params:
        problems.append(Problem(f"{key}.params.total_num_steps", "", f"{kind} needs it", "add the number of steps"))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _is_pair(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))


def _is_warmup_type(value: object) -> bool:
    return value in ("log", "linear")


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= -1


# By parameter: the check of its value, and the legal values in words. A parameter that is not here is a number.
_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    "betas": (_is_pair, "two numbers"),
    "warmup_type": (_is_warmup_type, '"log" or "linear"'),
    **dict.fromkeys(_FLAGS, (_is_flag, "true or false")),
    **dict.fromkeys(_COUNTS, (_is_count, "an integer of at least -1")),
}
