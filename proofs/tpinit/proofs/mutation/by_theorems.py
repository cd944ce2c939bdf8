"""Judge a mutant of a proven module: by the subset checker and the theorems about the module alone, without tests."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable
from functools import cache

import tpinit.proofs.theorems  # noqa: F401 - registers the theorems
import z3
from tpinit.proofs.claims import THEOREMS, CheckResult, Theorem, Verdict
from tpinit.proofs.edited_source import edited_module
from tpinit.proofs.mutation.test_runner import run_forked, temporary_folder
from tpinit.proofs.subset import checker
from tpinit.proofs.translation.deciding import Translated, check
from tpinit.proofs.translation.translator import Translator
from tpinit.proofs.translation.values import same

__all__ = ["Refusal", "equal", "refused"]

_SECONDS = 240  # of CPU time, for all theorems about a module

# What refuses a mutant, with its message; two empty strings for a mutant of which every theorem still holds.
Refusal = tuple[str, str]


def refused(module: str, original: str, mutated: str, function: str) -> Refusal:
    """Return what refuses the mutated source of a proven module: the checker of the subset, or the first theorem.

    A theorem that is no longer proven refuses it, refuted or not: `tpinit prove` fails for both. `function` is the
    mutated one; the theorems about it come first.
    """
    problems = checker.check(mutated, module)
    if problems:
        return "proven_modules_are_in_the_subset", problems[0][:300]
    theorems = _in_order(module, original, function)
    with temporary_folder() as folder:
        answer = run_forked(folder, _SECONDS, lambda: _first_refusal(module, original, mutated, theorems))
    return ("a time-out of the theorems", "") if answer is None else (answer[0], answer[1])


_AT_LEAST_1 = ("parts", "tp_size", "unit")  # the contract of the arithmetic; its other integers are at least 0


def equal(module: str, original: str, mutated: str, function: str) -> str:
    """Return the proof that a mutant of which every theorem holds equals the original; an empty string for none.

    The theorems about the resolver fix each value that `resolve` returns, its only public function. Elsewhere both
    solvers compare the mutated function with the original for all legal integers, by the translation.
    """
    if module == "tpinit.reference.resolver":
        return "every theorem about the module holds, and they fix every value of the decision"
    one = Translator(original, module)
    node = one.functions.get(function)
    if node is None or not all(isinstance(a.annotation, ast.Name) and a.annotation.id == "int" for a in node.args.args):
        return ""
    integers = [z3.Int(argument.arg) for argument in node.args.args]
    legal = z3.And(*(each >= (1 if str(each) in _AT_LEAST_1 else 0) for each in integers))

    def claims(other: Translator) -> Translated:
        return Translated(legal, [("equal", same(one.call(function, *integers), other.call(function, *integers)))])

    result = check(edited_module(importlib.import_module(module), original, mutated), claims, (function,))
    return f"z3 and cvc5 prove {function} equal to the original" if result.verdict is Verdict.PROVED else ""


def _first_refusal(module: str, original: str, mutated: str, theorems: Iterable[Theorem]) -> Refusal:
    try:
        copy = edited_module(importlib.import_module(module), original, mutated)
    except Exception as error:  # a module that can't be imported
        return "the import", f"{type(error).__name__}: {error}"[:300]
    for theorem in theorems:
        assert theorem.on is not None
        try:
            result = theorem.on(copy)
        except Exception as error:  # `tpinit prove` reports this as unknown
            result = CheckResult(Verdict.UNKNOWN, detail=f"{type(error).__name__}: {error}")
        if result.verdict is not Verdict.PROVED:
            return theorem.name, f"{result.verdict.value}: {result.detail}"[:300]
    return "", ""


def _in_order(module: str, source: str, function: str) -> list[Theorem]:
    """Return the theorems about a module: first those of functions that call `function`, the small functions first.

    Where none calls it, as a constant of the module, those of the translation come first, which are the fastest.
    """
    calls = _calls(source)

    def place(theorem: Theorem) -> tuple[int, int]:
        named = theorem.name.removeprefix("shipped_").removeprefix("evidence_of_")
        if function in calls.get(named, ()):
            return 0, len(calls[named])
        proves = [name.rpartition(".")[2] for name in theorem.proves]
        reached = function in calls and any(function in calls.get(name, ()) for name in proves)
        return (1, 0) if reached else (2, not theorem.name.startswith("translated_"))

    about = [one for one in THEOREMS.values() if one.on is not None and one.sources == (module,)]
    return sorted(about, key=place)


@cache
def _calls(source: str) -> dict[str, frozenset[str]]:
    """Map each function of a module to all functions that it calls, directly or indirectly, itself included."""
    direct = {
        function.name: {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
        for function in ast.parse(source).body
        if isinstance(function, ast.FunctionDef)
    }
    reached = {name: {name} for name in direct}
    for found in reached.values():
        waiting = set(found)
        while waiting:
            waiting = (set().union(*(direct[name] for name in waiting)) & direct.keys()) - found
            found |= waiting
    return {name: frozenset(found) for name, found in reached.items()}
