"""Lint of the theorems: every theorem is registered, and every clause of contract section 6 has a theorem.

The files are read as syntax trees without importing them, because a theorem that no module imports is
exactly what the lint must find.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tpinit.proofs.claims import Theorem
from tpinit.proofs.step import rules
from tpinit.proofs.subset.grammar import MODULES

__all__ = ["CLAUSES", "FOLDER", "STEP_FOLDER", "problems"]

FOLDER = Path(__file__).parent / "theorems"
STEP_FOLDER = Path(__file__).parent / "step"

# The items of contract section 6, shortened.
CLAUSES: Mapping[str, str] = {
    "6.1": "exhaustive and disjoint under A0; A0 necessary; rows reachable; one pair differs in one condition",
    "6.2": "the table is equivalent to the prose",
    "6.3": "the merge: config canonical, only gaps filled, mismatches exact, idempotent, sources true",
    "6.4": "nothing is silently ignored",
    "6.5": "a success is safe",
    "6.6": "the decision is total and deterministic; every violation is reachable alone",
    "6.7": "no bound on sizes, worlds or numbers of groups",
    "6.8": "topology: groups partition the ranks, for every world and every dividing size",
    "6.9": "shard arithmetic: offsets tile, uneven, head-aligned and fused ones too",
    "6.10": "the shipped source equals the model on every path",
    "6.11": "the step: each rule by which a sharded step is shown to be the whole one",
}


def problems(folder: Path, theorems: Mapping[str, Theorem], steps: Path = STEP_FOLDER) -> list[str]:
    """Return the problems of the theorems in a folder, given the registered ones. An empty list is a pass.

    `steps` is the folder of the theorems about the rules of the step proof, whose names begin with "step_".
    """
    return [
        *_of_folder(folder, theorems, ""),
        *_of_folder(steps, theorems, "step_"),
        *_clauses_left_out(theorems),
        *_without_source(theorems.values()),
        *_functions_left_out(theorems.values()),
        *rules.problems(theorems.values()),
    ]


def _of_folder(folder: Path, theorems: Mapping[str, Theorem], prefix: str) -> Iterator[str]:
    trees = {path.stem: ast.parse(path.read_bytes(), str(path)) for path in sorted(folder.glob("*.py"))}
    yield from _modules_left_out(trees, folder.name)
    yield from _theorems_left_out(trees, theorems, folder.name, prefix)


def _modules_left_out(trees: Mapping[str, ast.Module], folder: str) -> Iterator[str]:
    reached, waiting = {"__init__"}, ["__init__"]
    while waiting:
        for name in _imported(trees[waiting.pop()]):
            if name in trees and name not in reached:
                reached.add(name)
                waiting.append(name)
    for name in trees:
        if name not in reached:
            yield f"{folder}/{name}.py: no module imports it; import it in {folder}/__init__.py"


def _imported(tree: ast.Module) -> Iterator[str]:
    """Yield the last part of every module name that the imports of a module can mean."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (item.name.rpartition(".")[2] for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").rpartition(".")[2]
            yield from (item.name for item in node.names)


_DECORATORS = ("theorem", "lemma_theorem", "rule_theorem")
_CONSTRUCTORS = ("Claim", "Lemma", "claim", "base", "step")


def _theorems_left_out(
    trees: Mapping[str, ast.Module], theorems: Mapping[str, Theorem], folder: str, prefix: str
) -> Iterator[str]:
    for module, tree in trees.items():
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            where = f"{folder}/{module}.py:{function.lineno}: {function.name}"
            if any(_called(one) in _DECORATORS for one in function.decorator_list):
                if f"{prefix}{function.name}" not in theorems:
                    yield f"{where} is a theorem that is not registered, so that it never runs"
            elif _states(function) and function.name not in used:
                yield f"{where} states claims but never runs; decorate it with @theorem"
        for name, line in _named_theorems(tree):
            if name not in theorems:
                yield f"{folder}/{module}.py:{line}: {name} is a theorem that is not registered, so that it never runs"


def _called(node: ast.expr) -> str:
    target = node.func if isinstance(node, ast.Call) else node
    return target.id if isinstance(target, ast.Name) else target.attr if isinstance(target, ast.Attribute) else ""


def _states(function: ast.FunctionDef) -> bool:
    return any(isinstance(node, ast.Call) and _called(node) in _CONSTRUCTORS for node in ast.walk(function))


def _named_theorems(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield the name and line of every `Theorem(...)` call whose name is a string literal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) == "Theorem":
            named = [word.value for word in node.keywords if word.arg == "name"] + node.args[:1]
            if named and isinstance(named[0], ast.Constant) and isinstance(named[0].value, str):
                yield named[0].value, node.lineno


def _clauses_left_out(theorems: Mapping[str, Theorem]) -> Iterator[str]:
    named = {theorem.clause for theorem in theorems.values()}
    for clause, says in CLAUSES.items():
        if clause not in named:
            yield f"clause {clause} ({says}): no theorem discharges it"
    for theorem in theorems.values():
        if theorem.clause not in CLAUSES:
            yield f"theorem {theorem.name} names clause {theorem.clause!r}, which is not in the contract"


def _without_source(theorems: Iterable[Theorem]) -> Iterator[str]:
    for theorem in theorems:
        if theorem.claims is None and not theorem.sources:
            yield f"theorem {theorem.name} does not name the source that it proves; give it sources=(module,)"


# The two semantics by which every public function of a proven module is proven; the start of the engine's name.
_SEMANTICS = ("paths", "translation")


def _functions_left_out(theorems: Iterable[Theorem]) -> Iterator[str]:
    proven = {
        (semantics, name)
        for t in theorems
        for semantics in _SEMANTICS
        if t.engine.startswith(semantics)
        for name in t.proves
    }
    for module in MODULES:
        for name in _public(module):
            for semantics in _SEMANTICS:
                if (semantics, f"{module}.{name}") not in proven:
                    yield f"{module}.{name}: no theorem of the engine {semantics!r} names it in `proves`"


def _public(module: str) -> list[str]:
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    listed = next(
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return [str(name) for name in ast.literal_eval(listed)]
