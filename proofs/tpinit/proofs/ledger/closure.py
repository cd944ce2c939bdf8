"""The modules that the verdicts rest on: the proven source, the vocabulary, the contract's terms, and the engines."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from tpinit.proofs.subset.grammar import MODULES

__all__ = ["ROOTS", "rests_on"]

# The theorems, and what runs them. Every module of tpinit that these import is found from here.
ROOTS = ("tpinit.proofs.theorems", "tpinit.proofs.running", "tpinit.proofs.lint", *MODULES)

_PACKAGES = ("tpinit.reference", "tpinit.runtime", "tpinit.runtime.groups")


def rests_on() -> list[str]:
    """Return the names of all modules of tpinit that deciding the theorems imports, sorted.

    The packages of the reference and of the runtime are left out: their code is no part of a verdict, except for the
    proven modules, which import only the vocabulary.
    """
    found: set[str] = set()
    waiting = list(ROOTS)
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if name in found or name in _PACKAGES or path is None:
            continue
        found.add(name)
        waiting += _imported(ast.parse(path.read_bytes()))
    return sorted(found)


def _source(name: str) -> Path | None:
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:
        return None
    has_source = spec is not None and spec.origin is not None and spec.origin.endswith(".py")
    return Path(str(spec.origin)) if spec is not None and has_source else None


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield every name of tpinit that may be a module in an import, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names if item.name.startswith("tpinit."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tpinit"):
            yield str(node.module)
            yield from (f"{node.module}.{item.name}" for item in node.names)
