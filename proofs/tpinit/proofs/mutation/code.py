"""Mutants of the code: the mutated modules, and the theorems and tests that must kill their mutants."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tpinit.proofs.claims import THEOREMS, CheckResult, Theorem, Verdict
from tpinit.proofs.mutation.result import MutantResult, MutantStatus
from tpinit.proofs.mutation.sources import SourceMutant, source_mutants
from tpinit.proofs.mutation.test_runner import (
    Coverage,
    PytestRun,
    SourceChange,
    Suite,
    check_original,
    record_coverage,
    run_forked,
    run_tests,
    temporary_folder,
)

__all__ = ["TARGETS", "MutationTarget", "checkout", "cover", "judge_code", "mutants_of"]

_READER = (
    "tests/unit/reference/test_config_section.py",
    "tests/unit/reference/test_config_top.py",
    "tests/unit/reference/test_config_sources.py",
    "tests/unit/reference/test_config_edges.py",
)
_OBJECTS = (
    "tests/unit/reference/test_objects.py",
    "tests/unit/reference/test_objects_edges.py",
    "tests/unit/reference/test_explain.py",
)
_SCHEMA = "tests/unit/reference/test_schema.py"
_SPELLINGS = "tests/unit/reference/test_spellings.py"
_ALL = (*_READER, *_OBJECTS, _SCHEMA, _SPELLINGS, "tests/unit/reference/test_errors.py")


@dataclass(frozen=True, slots=True)
class MutationTarget:
    """One mutated module: its file relative to the root, the clause of its theorems, and its test files."""

    module: str
    file: str
    tests: tuple[str, ...]
    clause: str = ""

    @property
    def name(self) -> str:
        """The last part of the module name."""
        return self.module.rpartition(".")[2]


def _reference(name: str, first: tuple[str, ...], clause: str = "") -> MutationTarget:
    tests = (*first, *(file for file in _ALL if file not in first))
    return MutationTarget(f"tpinit.reference.{name}", f"reference/tpinit/reference/{name}.py", tests, clause)


def _runtime(name: str, clause: str) -> MutationTarget:
    file = f"runtime/tpinit/runtime/{name.replace('.', '/')}.py"
    tests = ("tests/unit/runtime/groups/test_topology.py", "tests/unit/runtime/test_shards.py")
    return MutationTarget(f"tpinit.runtime.{name}", file, tests, clause)


TARGETS: tuple[MutationTarget, ...] = (
    _reference("resolver", ("tests/unit/reference/test_evidence.py", "tests/unit/reference/test_explain.py"), "6.10"),
    *(_reference(name, _READER) for name in ("config", "fields", "source", "values", "top")),
    _reference("spellings", (_SPELLINGS, *_READER)),
    *(_reference(name, _OBJECTS) for name in ("groups", "mpu", "objects")),
    _runtime("groups.topology", "6.8"),
    _runtime("shards", "6.9"),
)


def checkout() -> Path:
    """Return the root of the checkout. Raises FileNotFoundError where the sources or the tests are missing."""
    root = Path(__file__).resolve().parents[4]
    missing = [file for target in TARGETS for file in (target.file, target.tests[0]) if not (root / file).is_file()]
    if missing:
        raise FileNotFoundError(f"mutants of the code need a source checkout with its tests: no {root / missing[0]}")
    return root


@cache
def mutants_of(target: MutationTarget) -> dict[str, SourceMutant]:
    """Return the mutants of a module by name, in source order."""
    source = (checkout() / target.file).read_text(encoding="utf-8")
    return {mutant.name: mutant for mutant in source_mutants(target.name, source)}


def cover(targets: Sequence[MutationTarget]) -> dict[tuple[str, ...], Coverage]:
    """Run the tests once on the original source. Return the coverage for each target's tuple of test files."""
    files: dict[frozenset[str], list[MutationTarget]] = {}
    for target in targets:
        files.setdefault(frozenset(target.tests), []).append(target)
    found: dict[tuple[str, ...], Coverage] = {}
    for group in files.values():
        coverage = record_coverage(Suite(checkout(), group[0].tests), [target.file for target in group])
        found |= {target.tests: coverage for target in group}
    return found


def judge_code(target: MutationTarget, name: str, coverage: Coverage, listed: Mapping[str, str]) -> MutantResult:
    """Judge a mutant with the theorems about its module, then with the tests that reach the changed lines.

    `listed` maps accepted survivors to their reasons. A listed mutant that is killed counts as killed.
    """
    mutant = mutants_of(target)[name]
    source = mutant.source()
    killer, how, unproven, proven = _by_theorems(target, mutant, source)
    if not killer:
        pytest_run = _by_tests(target, mutant, source, coverage)
        killer, how = pytest_run.failed, pytest_run.message
    if not killer and unproven:
        killer, how = unproven
    if killer:
        return MutantResult(target.name, name, MutantStatus.KILLED, killer, how)
    if proven:
        return MutantResult(target.name, name, MutantStatus.EQUIVALENT, "z3", proven)
    if name in listed:
        return MutantResult(target.name, name, MutantStatus.LISTED, "", listed[name])
    return MutantResult(target.name, name, MutantStatus.SURVIVED)


# --- tests ---------------------------------------------------------------------------------------------


# The targets whose original source passed `check_original` in this process.
_CHECKED: set[MutationTarget] = set()


def _by_tests(target: MutationTarget, mutant: SourceMutant, source: str, coverage: Coverage) -> PytestRun:
    suite = Suite(checkout(), target.tests)
    if target not in _CHECKED:
        check_original(suite, target.file, coverage)
        _CHECKED.add(target)
    pytest_run = PytestRun("")
    tests = coverage.tests_reaching(target.file, mutant.lines)
    # The likely killers run first and alone, because importing the other test files costs more than running them.
    for likely in (True, False):
        chosen = [test for test in tests if (test.partition("::")[0] in target.tests[:2]) is likely]
        if chosen and not pytest_run.failed:
            # Five times the CPU time of the tests on the original source, plus five seconds.
            seconds = 5 + 5 * sum(coverage.seconds[test] for test in chosen)
            pytest_run = run_tests(suite, SourceChange(target.file, source), chosen, seconds)
    return pytest_run


# --- theorems ------------------------------------------------------------------------------------------

_THEOREM_SECONDS = 60


def _by_theorems(
    target: MutationTarget, mutant: SourceMutant, source: str
) -> tuple[str, str, tuple[str, str] | None, str]:
    """Return (refuted theorem, message, undecided theorem with message, proof of equivalence) for a mutant.

    The first, second and fourth are empty where there is none. The proof of equivalence lists the theorems, all
    still proven, from which it follows that the mutant equals the original.
    """
    theorems = _theorems(target, mutant.function)
    if not theorems:
        return "", "", None, ""
    with temporary_folder() as folder:
        answer = run_forked(folder, _THEOREM_SECONDS, lambda: _judged_in_child(target, source, theorems))
    if answer is None:
        return "", "", (f"a time-out of {theorems[0].name}", ""), ""
    if answer["failed"] or answer["undecided"]:
        return answer["failed"], answer["how"], tuple(answer["undecided"]) if answer["undecided"] else None, ""
    names = ", ".join(theorem.name for theorem in theorems)
    complete = target.clause == "6.10" and not _gives_evidence(target, mutant.function)
    return (
        "",
        "",
        None,
        f"it equals the model for every input, and evidence does not depend on it: {names}" if complete else "",
    )


def _gives_evidence(target: MutationTarget, function: str) -> bool:
    """Return whether the evidence of a violation depends on a function; no theorem is about evidence."""
    text = (checkout() / target.file).read_text(encoding="utf-8")
    calls = _calls(text)
    if function not in calls:
        return True
    (table,) = (node for node in ast.parse(text).body if _constant(node) == "VIOLATIONS")
    assert isinstance(table, ast.AnnAssign)
    assert isinstance(table.value, ast.Tuple)
    evidence = [row.elts[2] for row in table.value.elts if isinstance(row, ast.Tuple)]
    used = {node.id for part in evidence for node in ast.walk(part) if isinstance(node, ast.Name)}
    return any(function in calls.get(name, ()) for name in used)


def _constant(node: ast.stmt) -> str:
    return node.target.id if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else ""


def _judged_in_child(target: MutationTarget, source: str, theorems: Sequence[Theorem]) -> dict[str, object]:
    """Execute the mutated source in the module (only in a fork), and prove the theorems up to the first refuted."""
    module = importlib.import_module(target.module)
    try:
        exec(compile(source, target.file, "exec"), module.__dict__)
    except Exception as error:  # an import error kills the mutant
        return {"failed": "the import", "how": f"{type(error).__name__}: {error}"[:300], "undecided": None}
    undecided = None
    for theorem in theorems:
        assert theorem.prove is not None
        try:
            result = theorem.prove()
        except Exception as error:  # `tpinit prove` reports this as unknown
            result = CheckResult(Verdict.UNKNOWN, detail=f"{type(error).__name__}: {error}")
        if result.verdict in (Verdict.REFUTED, Verdict.VACUOUS):
            how = f"{result.verdict.value}: {result.detail}"[:300]
            return {"failed": theorem.name, "how": how, "undecided": None}
        if result.verdict is not Verdict.PROVED and undecided is None:
            undecided = (theorem.name, f"no longer proven, {result.verdict.value}: {result.detail}"[:300])
    return {"failed": "", "how": "", "undecided": undecided}


def _theorems(target: MutationTarget, function: str) -> list[Theorem]:
    if not target.clause:
        return []
    import tpinit.proofs.theorems  # registers them

    del tpinit
    about = [theorem for theorem in THEOREMS.values() if theorem.clause == target.clause and theorem.prove is not None]
    if target.clause != "6.10":
        return about
    # Each theorem about the resolver has the name of its function. Theorems about small functions run first.
    shipped = {
        theorem.name.removeprefix("shipped_"): theorem for theorem in about if theorem.name.startswith("shipped_")
    }
    calls = _calls((checkout() / target.file).read_text(encoding="utf-8"))
    reaching = [name for name in shipped if function in calls.get(name, ())]
    composition = ["resolve_is_its_parts"] if function in ("resolve", "VIOLATIONS") else []
    order = sorted(reaching, key=lambda name: len(calls[name]))
    return [shipped[name] for name in (*composition, *order)]


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
