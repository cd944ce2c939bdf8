"""Planning leaves no trace: whatever a fake forward sets on a model is restored when it ends."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tpinit.runtime.internals.torch_private import buffers_of, empty_module_state, version_of

__all__ = ["no_trace"]

_ABSENT = object()
_CONTAINERS = (list, dict, set)
# The attributes of every module that hold dicts: parameters, buffers, children, hooks of all kinds.
_DICTS = frozenset(name for name, value in empty_module_state().items() if isinstance(value, dict))


@contextmanager
def no_trace(model: nn.Module) -> Iterator[None]:
    """Restore every attribute, hook, buffer and mode of every module, and the attributes of their configs, at the end.

    A forward may set flags, count calls, cache tensors, install hooks or write to buffers. Attributes are restored by
    identity, the modules' own dicts and plain lists, dicts and sets by their entries, and buffers that were written in
    place by their values.
    """
    modules = list(model.modules())
    attributes = [dict(module.__dict__) for module in modules]
    entries = [{name: dict(module.__dict__[name]) for name in _DICTS & module.__dict__.keys()} for module in modules]
    buffers = [
        (buffer, version_of(buffer), buffer.detach().clone())
        for module in modules
        for buffer in buffers_of(module).values()
        if buffer is not None and not buffer.is_meta
    ]
    containers = [
        (value, copy.copy(value))
        for held in attributes
        for name, value in held.items()
        if type(value) in _CONTAINERS and name not in _DICTS
    ]
    configs = {id(config): (config, dict(vars(config))) for config in _configs(modules)}
    try:
        yield
    finally:
        for module, before, dicts in zip(modules, attributes, entries, strict=True):
            _restore(module.__dict__, before)
            for name, contents in dicts.items():
                _restore(module.__dict__[name], contents)
        for container, contents in containers:
            _refill(container, contents)
        for buffer, version, values in buffers:
            if version_of(buffer) != version:
                with torch.no_grad():
                    buffer.copy_(values)
        for config, before in configs.values():
            _restore(vars(config), before)


def _refill(container: Any, before: Any) -> None:
    """Give a list, dict or set the items that it had. An unchanged one is not written to."""
    if isinstance(container, dict):
        _restore(container, before)
    elif len(container) != len(before) or any(
        one is not other for one, other in zip(container, before, strict=True)
    ):  # a set keeps its order while it is not written to
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(before)


def _configs(modules: list[nn.Module]) -> Iterator[Any]:
    for module in modules:
        config = module.__dict__.get("config")
        if hasattr(config, "__dict__") and not isinstance(config, nn.Module):
            yield config


def _restore(current: dict[str, Any], before: dict[str, Any]) -> None:
    """Give a dict the entries that it had, in their order, and no others. An unchanged dict is not written to."""
    if list(current) == list(before) and all(current[key] is value for key, value in before.items()):
        return
    for key in [key for key in current if key not in before]:
        del current[key]
    if [key for key in current if key in before] != list(before):
        current.clear()
    for key, value in before.items():
        if current.get(key, _ABSENT) is not value:
            current[key] = value
