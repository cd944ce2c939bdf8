"""Mutants of the code: which modules, which theorems and tests must kill them, and what became of each."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tpinit.proofs.claims import THEOREMS, Result, Theorem, Verdict
from tpinit.proofs.mutation.battery import Battery, Change, Coverage, Ended, check, forked, record, run, temporary_home
from tpinit.proofs.mutation.record import Fate, Judged
from tpinit.proofs.mutation.sources import SourceMutant, source_mutants

__all__ = ["TARGETS", "Target", "checkout", "cover", "judge_code", "mutants_of"]

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
class Target:
    """One module: where its source is below the root, the theorems about it (a clause), and the tests that read it."""

    module: str
    file: str
    tests: tuple[str, ...]
    clause: str = ""

    @property
    def name(self) -> str:
        """The module's last name."""
        return self.module.rpartition(".")[2]


def _reference(name: str, first: tuple[str, ...], clause: str = "") -> Target:
    tests = (*first, *(file for file in _ALL if file not in first))
    return Target(f"tpinit.reference.{name}", f"reference/tpinit/reference/{name}.py", tests, clause)


def _runtime(name: str, clause: str) -> Target:
    file = f"runtime/tpinit/runtime/{name.replace('.', '/')}.py"
    return Target(f"tpinit.runtime.{name}", file, ("tests/unit/runtime/test_topology_shards.py",), clause)


TARGETS: tuple[Target, ...] = (
    _reference("resolver", ("tests/unit/reference/test_evidence.py", "tests/unit/reference/test_explain.py"), "6.10"),
    *(_reference(name, _READER) for name in ("config", "fields", "source", "values", "top")),
    _reference("spellings", (_SPELLINGS, *_READER)),
    *(_reference(name, _OBJECTS) for name in ("groups", "mpu", "objects")),
    _runtime("groups.topology", "6.8"),
    _runtime("shards", "6.9"),
)


def checkout() -> Path:
    """Return the root of the source tree. Raises FileNotFoundError where the tests are not there."""
    root = Path(__file__).resolve().parents[4]
    missing = [file for target in TARGETS for file in (target.file, target.tests[0]) if not (root / file).is_file()]
    if missing:
        raise FileNotFoundError(f"mutants of the code need a source checkout with its tests: no {root / missing[0]}")
    return root


@cache
def mutants_of(target: Target) -> dict[str, SourceMutant]:
    """Return the mutants of a module by their names, in the order of its source."""
    source = (checkout() / target.file).read_text(encoding="utf-8")
    return {mutant.name: mutant for mutant in source_mutants(target.name, source)}


def cover(targets: Sequence[Target]) -> dict[tuple[str, ...], Coverage]:
    """Run the tests once on the right source, and record what each reaches: by the tests of each target."""
    files: dict[frozenset[str], list[Target]] = {}
    for target in targets:
        files.setdefault(frozenset(target.tests), []).append(target)
    found: dict[tuple[str, ...], Coverage] = {}
    for group in files.values():
        coverage = record(Battery(checkout(), group[0].tests), [target.file for target in group])
        found |= {target.tests: coverage for target in group}
    return found


def judge_code(target: Target, name: str, coverage: Coverage, listed: Mapping[str, str]) -> Judged:
    """Try the theorems about the module, then the tests that reach the changed lines.

    `listed` are survivors with a reason each; one of them that is killed is stale, which its words say.
    """
    mutant = mutants_of(target)[name]
    source = mutant.source()
    killer, how, unproven, proven = _by_theorems(target, mutant, source)
    if not killer:
        ended = _by_tests(target, mutant, source, coverage)
        killer, how = ended.failed, ended.how
    if not killer and unproven:
        killer, how = unproven
    if killer:
        return Judged(target.name, name, Fate.KILLED, killer, how)
    if proven:
        return Judged(target.name, name, Fate.EQUIVALENT, "z3", proven)
    if name in listed:
        return Judged(target.name, name, Fate.LISTED, "", listed[name])
    return Judged(target.name, name, Fate.SURVIVED)


# --- tests ---------------------------------------------------------------------------------------------


# The targets of which this process has seen that the right source survives.
_CHECKED: set[Target] = set()


def _by_tests(target: Target, mutant: SourceMutant, source: str, coverage: Coverage) -> Ended:
    battery = Battery(checkout(), target.tests)
    if target not in _CHECKED:
        check(battery, target.file, coverage)
        _CHECKED.add(target)
    ended = Ended("")
    tests = coverage.reaching(target.file, mutant.lines)
    # The likely killers alone first: the others cost more to import than to run.
    for likely in (True, False):
        chosen = [test for test in tests if (test.partition("::")[0] in target.tests[:2]) is likely]
        if chosen and not ended.failed:
            # Generous: five times what the tests cost on the right source, and never under five seconds of CPU.
            seconds = 5 + 5 * sum(coverage.seconds[test] for test in chosen)
            ended = run(battery, Change(target.file, source), chosen, seconds)
    return ended


# --- theorems ------------------------------------------------------------------------------------------

_THEOREM_SECONDS = 60


def _by_theorems(target: Target, mutant: SourceMutant, source: str) -> tuple[str, str, tuple[str, str] | None, str]:
    """Return the theorem that the changed module refutes and how, one that it leaves undecided, and its equivalence.

    The last is empty, or says why the theorems, all still proven, prove the mutant equal to the original.
    """
    theorems = _theorems(target, mutant.function)
    if not theorems:
        return "", "", None, ""
    with temporary_home() as home:
        said = forked(home, _THEOREM_SECONDS, lambda: _judged_in_child(target, source, theorems))
    if said is None:
        return "", "", (f"a time-out of {theorems[0].name}", ""), ""
    if said["failed"] or said["undecided"]:
        return said["failed"], said["how"], tuple(said["undecided"]) if said["undecided"] else None, ""
    names = ", ".join(theorem.name for theorem in theorems)
    whole = target.clause == "6.10" and not _gives_evidence(target, mutant.function)
    return "", "", None, f"it decides as the model for every input, and gives no evidence: {names}" if whole else ""


def _gives_evidence(target: Target, function: str) -> bool:
    """Tell whether the evidence of a violation comes through a function: of evidence there is no theorem."""
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


def _judged_in_child(target: Target, source: str, theorems: Sequence[Theorem]) -> dict[str, object]:
    """Put the changed source into the module itself (this process is a fork) and prove, up to the first that falls."""
    module = importlib.import_module(target.module)
    try:
        exec(compile(source, target.file, "exec"), module.__dict__)
    except Exception as error:  # the changed module can't even be imported
        return {"failed": "the import", "how": f"{type(error).__name__}: {error}"[:300], "undecided": None}
    undecided = None
    for theorem in theorems:
        assert theorem.prove is not None
        try:
            result = theorem.prove()
        except Exception as error:  # what `tpinit prove` calls unknown, and no pass
            result = Result(Verdict.UNKNOWN, detail=f"{type(error).__name__}: {error}")
        if result.verdict in (Verdict.REFUTED, Verdict.VACUOUS):
            how = f"{result.verdict.value}: {result.detail}"[:300]
            return {"failed": theorem.name, "how": how, "undecided": None}
        if result.verdict is not Verdict.PROVED and undecided is None:
            undecided = (theorem.name, f"no longer proven, {result.verdict.value}: {result.detail}"[:300])
    return {"failed": "", "how": "", "undecided": undecided}


def _theorems(target: Target, function: str) -> list[Theorem]:
    if not target.clause:
        return []
    import tpinit.proofs.theorems  # registers them

    del tpinit
    about = [theorem for theorem in THEOREMS.values() if theorem.clause == target.clause and theorem.prove is not None]
    if target.clause != "6.10":
        return about
    # Each theorem about the resolver is named after the function that it is about. The quick ones first.
    shipped = {
        theorem.name.removeprefix("shipped_"): theorem for theorem in about if theorem.name.startswith("shipped_")
    }
    calls = _calls((checkout() / target.file).read_text(encoding="utf-8"))
    reaching = [name for name in shipped if function in calls.get(name, ())]
    whole = ["resolve_is_its_parts"] if function in ("resolve", "VIOLATIONS") else []
    order = sorted(reaching, key=lambda name: len(calls[name]))
    return [shipped[name] for name in (*whole, *order)]


@cache
def _calls(source: str) -> dict[str, frozenset[str]]:
    """Give for each function of a module all that it calls, itself included, directly or not."""
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
