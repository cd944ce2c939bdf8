"""What the provable subset of Python allows. Everything that is not listed here is refused.

The subset has no construct whose meaning depends on the type, the identity, the text or the hash of a value, on
the environment, or on earlier calls. So a function of the subset is a function of its arguments, and two engines
can compute it.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

from tpinit.spec import vocabulary

__all__ = ["BUILTINS", "ENUMS", "FIELDS", "IMPORTS", "MODULES", "OPERATORS", "RECORDS", "SEALED"]

# The modules that the theorems of 6.8-6.10 are about.
MODULES = ("tpinit.reference.resolver", "tpinit.runtime.groups.topology", "tpinit.runtime.shards")

_NAMES = {name: getattr(vocabulary, name) for name in vocabulary.__all__}
ENUMS: Mapping[str, type[Enum]] = MappingProxyType(
    {name: item for name, item in _NAMES.items() if isinstance(item, type) and issubclass(item, Enum)}
)
RECORDS: Mapping[str, type] = MappingProxyType(
    {name: item for name, item in _NAMES.items() if isinstance(item, type) and dataclasses.is_dataclass(item)}
)
# The decision does not depend on a group's handle, so no proven function reads it.
FIELDS = frozenset(field.name for record in RECORDS.values() for field in dataclasses.fields(record)) - {"handle"}
# `is` may compare with a member of any enum but these: engines know such a value as a term, which has no identity.
SEALED = frozenset({"DType"})

# Names that may be imported from each module. Those of collections.abc occur in annotations only.
IMPORTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "__future__": frozenset({"annotations"}),
        "collections.abc": frozenset({"Callable", "Sequence"}),
        "tpinit.spec.vocabulary": frozenset(_NAMES),
    }
)

# Each builtin, and the number of its arguments. The other forms of these builtins are refused.
BUILTINS: Mapping[str, int] = MappingProxyType(
    {
        "all": 1,
        "any": 1,
        "bool": 1,
        "enumerate": 1,
        "len": 1,
        "list": 1,
        "range": 1,
        "set": 1,
        "sorted": 1,
        "tuple": 1,
        "zip": 1,
    }
)

OPERATORS: tuple[type[ast.AST], ...] = (
    *(ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod),
    *(ast.And, ast.Or, ast.Not, ast.USub),
    *(ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Is, ast.IsNot),
)
