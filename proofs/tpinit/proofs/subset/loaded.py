"""Check that what runs is the source: that nothing replaced a function, a constant or a builtin of a proven module."""

from __future__ import annotations

import ast
import builtins
import types
from collections.abc import Iterator
from typing import TypeVar

__all__ = ["problems"]

# What the import system and the compiler put into every module.
_OF_EVERY_MODULE = frozenset(types.ModuleType("m").__dict__) | {
    *("__file__", "__cached__", "__builtins__", "__annotations__", "annotations", "__all__"),
}


def problems(module: types.ModuleType, source: str) -> list[str]:
    """Return how a loaded module differs from its source, one line each. An empty list is a pass."""
    fresh = types.ModuleType(module.__name__)
    exec(compile(source, module.__dict__.get("__file__") or module.__name__, "exec"), fresh.__dict__)
    return [f"{module.__name__}: {problem}" for problem in _differences(module, fresh, ast.parse(source))]


def _differences(module: types.ModuleType, fresh: types.ModuleType, tree: ast.Module) -> Iterator[str]:
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for name in sorted(set(module.__dict__) ^ set(fresh.__dict__)):
        if name not in _OF_EVERY_MODULE:
            yield f"{name} is bound in the loaded module or in its source, but not in both"
    for name in sorted(set(module.__dict__) & set(fresh.__dict__) - _OF_EVERY_MODULE):
        ours, other = module.__dict__[name], fresh.__dict__[name]
        if name in defined:
            if not _is_same_function(ours, other, module):
                yield f"{name}() is not the function of its source"
        elif not _is_same_value(ours, other, module):
            yield f"{name} is not the value of its source"
    used = module.__dict__.get("__builtins__")
    if used is not builtins and used is not builtins.__dict__:
        yield "its builtins were replaced"


def _is_same_function(ours: object, other: object, module: types.ModuleType) -> bool:
    return (
        type(ours) is types.FunctionType
        and type(other) is types.FunctionType
        and ours.__code__ == other.__code__
        and ours.__globals__ is module.__dict__
        and not (ours.__defaults__ or ours.__kwdefaults__ or ours.__closure__)
    )


def _is_same_value(ours: object, other: object, module: types.ModuleType) -> bool:
    if type(ours) is not type(other):
        return False
    if isinstance(ours, type) and isinstance(other, type) and ours.__module__ == module.__name__:
        return _is_same_class(ours, other)
    if isinstance(ours, TypeVar):
        return True
    if isinstance(ours, tuple) and isinstance(other, tuple):
        return len(ours) == len(other) and all(map(_is_same_value, ours, other, [module] * len(ours)))
    if isinstance(ours, types.FunctionType) and isinstance(other, types.FunctionType):
        name: str = ours.__name__
        return module.__dict__.get(name) is ours and name == other.__name__
    return ours is other or bool(ours == other)


def _is_same_class(ours: type, other: type) -> bool:
    """Return whether no method of a class was replaced, added or removed."""
    mine = {name: item for name, item in vars(ours).items() if isinstance(item, types.FunctionType)}
    yours = {name: item for name, item in vars(other).items() if isinstance(item, types.FunctionType)}
    return set(vars(ours)) == set(vars(other)) and all(
        name in yours and item.__code__ == yours[name].__code__ for name, item in mine.items()
    )
