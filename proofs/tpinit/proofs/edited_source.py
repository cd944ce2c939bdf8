"""Shipped modules with one piece of source text replaced, as negative controls."""

from __future__ import annotations

import inspect
import types
from weakref import WeakKeyDictionary

from tpinit.reference import resolver as shipped

__all__ = ["edited", "edited_module", "shipped", "source_of"]


def edited(old: str, new: str) -> types.ModuleType:
    """Return `edited_module` of the shipped resolver."""
    return edited_module(shipped, old, new)


def edited_module(module: types.ModuleType, old: str, new: str, *more: tuple[str, str]) -> types.ModuleType:
    """Return a copy of a shipped module in which the text `old` of its source is replaced by `new`, and so with `more`.

    Raises ValueError unless `old` occurs exactly once: a control that changes nothing controls nothing.
    """
    source = inspect.getsource(module)
    for before, after in ((old, new), *more):
        if source.count(before) != 1:
            raise ValueError(f"{before!r} occurs {source.count(before)} times in the source of {module.__name__}")
        source = source.replace(before, after)
    copy = types.ModuleType(f"edited_{module.__name__.rpartition('.')[2]}")
    exec(compile(source, copy.__name__, "exec"), copy.__dict__)
    _SOURCES[copy] = source
    return copy


_SOURCES: WeakKeyDictionary[types.ModuleType, str] = WeakKeyDictionary()


def source_of(module: types.ModuleType) -> str:
    """Return the source of a shipped or an edited module."""
    return _SOURCES[module] if module in _SOURCES else inspect.getsource(module)
