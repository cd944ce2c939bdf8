"""Adapters: an implementation in this process, in another process, or in a world of processes.

`opener` turns the value of --impl into a function that makes adapters; `tpinit conform --help` lists the legal values.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import shlex
import sys
from collections.abc import Callable
from typing import Any

from tpinit.conformance.protocol import Adapter

__all__ = ["AdapterError", "Opener", "as_adapter", "opener", "resolve_object"]

Opener = Callable[[], Adapter]
_METHODS = ("start", "dialect", "run", "stop")
_NOT_NAMES = ("inprocess", "process", "peer", "ranks")


class AdapterError(ValueError):
    """The name of an implementation does not lead to one. The text says what was given and what is legal."""


def resolve_object(path: str) -> Any:
    """Return the object at `package.module:name.of.object`. Raises AdapterError if it can't be imported."""
    module_name, colon, names = path.strip().partition(":")
    if not (colon and module_name and names):
        raise AdapterError(f"{path!r} is not PKG:OBJECT, as in 'mypackage.tpinit:adapter'")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        of_the_name = error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}."))
        why = "no such module" if of_the_name else f"it needs {error.name}, which is not installed here"
        raise AdapterError(f"{module_name!r} can't be imported: {why}") from error
    except Exception as error:  # the import runs the user's code, which may raise anything
        raise AdapterError(f"{module_name!r} can't be imported: {type(error).__name__}: {error}") from error
    for name in names.split("."):
        if not hasattr(found, name):
            raise AdapterError(f"{module_name!r} has no {names!r}")
        found = getattr(found, name)
    return found


def as_adapter(found: Any, path: str) -> Adapter:
    """Return an adapter for an object: an adapter, a class or function that makes one, or `answer(case)`.

    Raises AdapterError for anything else.
    """
    from tpinit.conformance.adapters.inprocess import CallableAdapter

    if not isinstance(found, type) and all(callable(getattr(found, name, None)) for name in _METHODS):
        adapter: Adapter = found
        return adapter
    if not callable(found):
        raise AdapterError(f"{path!r} is {type(found).__name__}, neither an adapter nor a function of a case")
    if not inspect.signature(found).parameters or isinstance(found, type):
        return as_adapter(found(), path)
    return CallableAdapter(found)


def named() -> list[str]:
    """Return the names of the adapters that ship with the kit."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if name not in _NOT_NAMES and not name.startswith("_") and "_" not in name)


def opener(spelled: str, *, fresh: bool = False, in_process: bool = False) -> Opener:
    """Return a function that makes a new adapter for `NAME`, `py: PKG:OBJECT`, `cmd: COMMAND` or `ranks: COMMAND`.

    With `fresh` each case gets a new process. With `in_process` a `py:` object runs in this process instead of another.
    Raises AdapterError for an unknown name, an object that can't be imported, and an empty command.
    """
    from tpinit.conformance.adapters.process import ProcessAdapter
    from tpinit.conformance.adapters.ranks import RanksAdapter

    kind, colon, rest = (part.strip() for part in spelled.partition(":"))
    if colon and kind in ("cmd", "ranks"):
        try:
            command = shlex.split(rest)
        except ValueError as error:
            raise AdapterError(f"{rest!r} is not a command: {error}") from error
        if not command:
            raise AdapterError(f"{spelled!r} has no command, as in '{kind}: node implementation.js'")
        if kind == "cmd":
            return lambda: ProcessAdapter(command, fresh=fresh)
        return lambda: RanksAdapter(command, fresh=fresh)
    if colon and kind == "py":
        found = resolve_object(rest)
        as_adapter(found, rest)
        if in_process or all(hasattr(found, name) for name in _METHODS):
            return lambda: as_adapter(found, rest)
        return lambda: ProcessAdapter((sys.executable, "-m", "tpinit.conformance.server", rest), fresh=fresh)
    if colon:
        raise AdapterError(f"{spelled!r} begins with {kind!r}. Legal: NAME, 'py: PKG:OBJECT', 'cmd: ...', 'ranks: ...'")
    if kind not in named():
        raise AdapterError(f"no adapter {kind!r} ships with this kit. Legal: {', '.join(named())}; or 'py: PKG:OBJECT'")
    path = f"{__name__}.{kind}:adapter"
    try:
        found = resolve_object(path)
    except AdapterError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise AdapterError(f"{error}. fix: pip install 'tpinit[{kind}]'") from error
        raise
    return lambda: as_adapter(found, path)
