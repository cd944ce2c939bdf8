"""The resolver as shipped, and the same source with one piece edited, for negative controls."""

from __future__ import annotations

import inspect
import types

from tpinit.reference import resolver as shipped

__all__ = ["edited", "shipped"]


def edited(old: str, new: str) -> types.ModuleType:
    """Load the shipped resolver with one piece of its source replaced.

    Raises ValueError unless the piece occurs exactly once: a control that changes nothing is no control.
    """
    source = inspect.getsource(shipped)
    if source.count(old) != 1:
        raise ValueError(f"{old!r} occurs {source.count(old)} times in the resolver's source")
    module = types.ModuleType("edited_resolver")
    exec(compile(source.replace(old, new), "edited_resolver", "exec"), module.__dict__)
    return module
