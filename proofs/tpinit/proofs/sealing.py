"""Seal a module while the path explorer runs it: only syntax of the subset, and no builtin but those that it models."""

from __future__ import annotations

import builtins
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from tpinit.proofs.edited_source import source_of
from tpinit.proofs.exploring import Unsupported
from tpinit.proofs.subset import checker

__all__ = ["sealed"]

# The explorer runs these on real tuples of symbolic values. `sorted` and `set` would order and hash the values.
_MODELLED = frozenset({"all", "any", "bool", "enumerate", "len", "list", "range", "tuple", "zip"})


class _Refused:
    """Stands where a builtin was, and refuses to be used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise Unsupported(f"the code under proof used {self._name}, which the explorer does not model")


@contextmanager
def sealed(module: types.ModuleType) -> Iterator[None]:
    """Refuse every builtin that the explorer does not model, inside of one module.

    `is`, `type` and the like can't be observed by a value, so the syntax of the module is checked first. Raises
    Unsupported where it is not in the provable subset.
    """
    problems = checker.check(source_of(module), module.__name__)
    if problems:
        raise Unsupported(f"the source is not in the provable subset: {'; '.join(problems)}")
    names = [name for name in dir(builtins) if name not in _MODELLED and not name.startswith("__")]
    before = dict(module.__dict__)
    module.__dict__.update({name: _Refused(name) for name in names if name not in before})
    try:
        yield
    finally:
        module.__dict__.clear()
        module.__dict__.update(before)
