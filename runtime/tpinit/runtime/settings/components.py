"""The config's `optimizer` and `scheduler` sections: which types and parameters are legal, and their values."""

from __future__ import annotations

from collections.abc import Mapping

from tpinit.reference.errors import Problem
from tpinit.reference.spellings import AUTO, nearest, show
from tpinit.runtime.settings.component_types import REFUSED_TYPES, ComponentType, component_types
from tpinit.runtime.settings.key_walk import is_comment
from tpinit.runtime.settings.schema import DEFAULT_CLIPPING, ComponentSettings

__all__ = ["read_component"]

_KEYS = ("type", "params", "legacy_fusion")  # the last one chooses a kernel of DeepSpeed
_EXAMPLES = {"optimizer": "AdamW", "scheduler": "WarmupLR"}
_UNFILLED = "transformers' Trainer and accelerate fill this in, and no caller did"


def read_component(config: Mapping[str, object], key: str, problems: list[Problem]) -> ComponentSettings | None:
    """Return the section `key` ("optimizer" or "scheduler") of a config; None if it is absent or malformed.

    Adds a Problem for everything that is malformed. Parameters that are null are left out.
    """
    section = config.get(key)
    if section is None or section == {}:
        return None
    form = f'write {key}: {{"type": "{_EXAMPLES[key]}", "params": {{...}}}}'
    if not isinstance(section, Mapping):
        problems.append(Problem(key, show(section), "this must be an object with type and params", form))
        return None
    problems += [
        Problem(f"{key}.{inner}", show(section[inner]), "this key is not known", f"write it in {key}.params, if it"
                " is a parameter, or take it out")
        for inner in section
        if inner not in _KEYS and not is_comment(inner) and not (key == "optimizer" and _is_default(inner, section))
    ]  # fmt: skip
    kind, params = section.get("type"), section.get("params") or {}
    legal = _find_type(key, kind, form, problems)
    if legal is None:
        return None
    if not isinstance(params, Mapping):
        problems.append(Problem(f"{key}.params", show(params), "this must be an object", form))
        return None
    params = {name: value for name, value in params.items() if value is not None and not is_comment(name)}
    # An old name of gradient_clipping; DeepSpeed 0.19.8 refuses it.
    if key == "optimizer" and params.get("max_grad_norm") in (0, config.get("gradient_clipping", DEFAULT_CLIPPING)):
        del params["max_grad_norm"]
    _check_params(key, legal, params, problems)
    return ComponentSettings(legal.name.lower(), params)


def _is_default(inner: str, section: Mapping[str, object]) -> bool:
    """Return whether a key beside the parameters says what an Adam does anyway: decay its weights as AdamW does."""
    params = section.get("params")
    given = params.get("adam_w_mode", True) if isinstance(params, Mapping) else True
    return inner == "adam_w_mode" and section[inner] is True and given is True


def _find_type(key: str, kind: object, form: str, problems: list[Problem]) -> ComponentType | None:
    """Return the type that a section names, in any case of letters; None after adding a Problem."""
    types = component_types(key)
    name = kind.lower() if isinstance(kind, str) else ""
    if name in types:
        return types[name]
    message = f"the types that are implemented: {_names(types)}"
    near = nearest(kind, [legal.name for legal in types.values()])
    if name in REFUSED_TYPES[key]:
        reason, form = REFUSED_TYPES[key][name]
        message = f"{reason}; {message}"
    elif near:
        form = f"did you mean {near}?"
    problems.append(Problem(f"{key}.type", show(kind), message, form))
    return None


def _names(types: Mapping[str, ComponentType]) -> str:
    """Return the names of the types, those that most configs use first."""
    common = [legal.name for legal in types.values()]
    first = [name for name in ("Adam", "AdamW", "SGD", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR") if name in common]
    return ", ".join([*first, *sorted(name for name in common if name not in first)])


def _check_params(key: str, kind: ComponentType, params: Mapping[str, object], problems: list[Problem]) -> None:
    for name, value in params.items():
        path = f"{key}.params.{name}"
        check = kind.params.get(name)
        if name == "max_grad_norm" and key == "optimizer":
            fix = f"write gradient_clipping {show(value)} at the top of the config, and take this out"
            problems.append(Problem(path, show(value), "gradient_clipping, which is the largest norm, differs", fix))
        elif check is None:
            near = nearest(name, kind.params) or ", ".join(kind.params)
            message = f"{kind.name} has no such parameter"
            problems.append(Problem(path, show(value), message, f"did you mean {near}?"))
        elif value == AUTO:
            problems.append(
                Problem(path, show(value), f"this must be {check.expected}: {_UNFILLED}", f"write {check.expected}")
            )
        elif not check.accepts(value):
            problems.append(Problem(path, show(value), f"this must be {check.expected}", f"write {check.expected}"))
    problems += [
        Problem(f"{key}.params.{name}", "", f"{kind.name} needs it", f"add it: {kind.params[name].expected}")
        for name in kind.required
        if name not in params
    ]
