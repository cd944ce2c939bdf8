"""The reference: reads users' input, decides, and explains the decision. Standard library only.

Each name is imported when it is first used, so that `import tpinit.reference` alone is fast.
`tpinit.reference.explain` is the module; its function of that name is `tpinit.reference.explain.explain`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, without importing it

if TYPE_CHECKING:
    from tpinit.reference.config import ConfigReading, parse_dtype, read_config, section_schema
    from tpinit.reference.errors import ConfigError, ConflictingCallsError, DecisionError, Problem, TpinitError
    from tpinit.reference.explain import describe, to_json
    from tpinit.reference.objects import CallArgs, GroupTable, Resolver
    from tpinit.reference.resolver import resolve

__all__ = [
    "CallArgs",
    "ConfigError",
    "ConfigReading",
    "ConflictingCallsError",
    "DecisionError",
    "GroupTable",
    "Problem",
    "Resolver",
    "TpinitError",
    "describe",
    "parse_dtype",
    "read_config",
    "resolve",
    "section_schema",
    "to_json",
]

_MODULES = {
    "CallArgs": "objects",
    "ConfigError": "errors",
    "ConfigReading": "config",
    "ConflictingCallsError": "errors",
    "DecisionError": "errors",
    "GroupTable": "objects",
    "Problem": "errors",
    "Resolver": "objects",
    "TpinitError": "errors",
    "describe": "explain",
    "parse_dtype": "config",
    "read_config": "config",
    "resolve": "resolver",
    "section_schema": "config",
    "to_json": "explain",
}


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
