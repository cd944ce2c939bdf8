"""Section 6, item 10: the proven modules are written in the provable subset of Python, and that source is what runs."""

from __future__ import annotations

import importlib
import inspect

from tpinit.proofs.claims import CheckResult, Theorem, Verdict, register
from tpinit.proofs.subset import checker, loaded, vocabulary
from tpinit.proofs.subset.grammar import MODULES

_VOCABULARY = "tpinit.spec.vocabulary"


def _source(name: str) -> str:
    return inspect.getsource(importlib.import_module(name))


def _in_subset(added: str = "") -> CheckResult:
    """Check every proven module, with the text `added` at its end, and the vocabulary."""
    problems = [problem for name in MODULES for problem in checker.check(_source(name) + added, name)]
    problems += vocabulary.check(_source(_VOCABULARY), _VOCABULARY)
    if problems:
        return CheckResult(Verdict.REFUTED, len(MODULES) + 1, "modules", "; ".join(problems))
    return CheckResult(Verdict.PROVED, len(MODULES) + 1, "modules")


def _is_what_runs(edit: tuple[str, str] = ("", "")) -> CheckResult:
    problems = [
        problem
        for name in (*MODULES, _VOCABULARY)
        for problem in loaded.problems(importlib.import_module(name), _source(name).replace(*edit))
    ]
    if problems:
        return CheckResult(Verdict.REFUTED, len(MODULES) + 1, "modules", "; ".join(problems))
    return CheckResult(Verdict.PROVED, len(MODULES) + 1, "modules")


register(
    Theorem(
        name="proven_modules_are_in_the_subset",
        statement="Resolver, topology and shard arithmetic are written in the provable subset of Python, and the "
        "vocabulary holds data only. So the value of a function depends on its arguments alone: not on a type, an "
        "identity, a text, a hash, the environment or an earlier call.",
        clause="6.10",
        control="the modules with a function that asks for a type",
        engine="syntax",
        sources=(*MODULES, _VOCABULARY),
        prove=_in_subset,
        refute=lambda: _in_subset("\n\ndef _of_type(value: int) -> bool:\n    return isinstance(value, bool)\n"),
    )
)

register(
    Theorem(
        name="proven_source_is_what_runs",
        statement="After the packages of resolver, topology and shard arithmetic are imported, each function, "
        "constant, builtin and class of these modules and of the vocabulary is the one of its source: no import "
        "replaced it.",
        clause="6.10",
        control="a source in which the first comparison of every module is another one",
        engine="import",
        sources=(*MODULES, _VOCABULARY),
        prove=_is_what_runs,
        refute=lambda: _is_what_runs((" < ", " <= ")),
    )
)
