"""Mutants of the code: the mutated modules, and the theorems and tests that must kill their mutants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tpinit.proofs.mutation.by_theorems import equal, refused
from tpinit.proofs.mutation.result import MutantResult, MutantStatus
from tpinit.proofs.mutation.sources import SourceMutant, source_mutants
from tpinit.proofs.mutation.test_runner import (
    Coverage,
    PytestRun,
    SourceChange,
    Suite,
    check_original,
    record_coverage,
    run_tests,
)
from tpinit.proofs.subset.grammar import MODULES

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
_INTEGERS = "tests/unit/reference/test_odd_integers.py"
_ALL = (*_READER, *_OBJECTS, _SCHEMA, _SPELLINGS, _INTEGERS, "tests/unit/reference/test_errors.py")


@dataclass(frozen=True, slots=True)
class MutationTarget:
    """One mutated module: its file relative to the root and its test files.

    The mutants of a proven module are judged by its theorems alone; of the tests is only asked that they exist.
    """

    module: str
    file: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """The last part of the module name."""
        return self.module.rpartition(".")[2]

    @property
    def proven(self) -> bool:
        """Whether the module is a proven one."""
        return self.module in MODULES


def _reference(name: str, first: tuple[str, ...]) -> MutationTarget:
    tests = (*first, *(file for file in _ALL if file not in first))
    return MutationTarget(f"tpinit.reference.{name}", f"reference/tpinit/reference/{name}.py", tests)


def _runtime(name: str, *tests: str) -> MutationTarget:
    file = f"runtime/tpinit/runtime/{name.replace('.', '/')}.py"
    return MutationTarget(f"tpinit.runtime.{name}", file, tuple(f"tests/unit/runtime/{test}.py" for test in tests))


TARGETS: tuple[MutationTarget, ...] = (
    _reference("resolver", ("tests/unit/reference/test_evidence.py", "tests/unit/reference/test_explain.py")),
    *(_reference(name, _READER) for name in ("config", "fields", "source", "values", "top")),
    _reference("spellings", (_SPELLINGS, *_READER)),
    *(_reference(name, _OBJECTS) for name in ("groups", "mpu", "objects")),
    _runtime("groups.topology", "groups/test_topology"),
    _runtime("shards", "test_shards"),
    _runtime("groups.agreement", "groups/test_agreement"),
    _runtime("groups.protocol", "groups/test_protocol"),
    _runtime("training.curves", "training/test_curves", "training/test_schedules"),
    _runtime("training.loss_scaler", "training/test_loss_scaler"),
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
    return {mutant.name: mutant for mutant in source_mutants(target.name, source, proven=target.proven)}


def cover(targets: Sequence[MutationTarget]) -> dict[tuple[str, ...], Coverage]:
    """Run the tests once on the original source. Return the coverage for each target's tuple of test files."""
    files: dict[frozenset[str], list[MutationTarget]] = {}
    for target in targets:
        if target.proven:
            continue
        files.setdefault(frozenset(target.tests), []).append(target)
    found: dict[tuple[str, ...], Coverage] = {target.tests: Coverage({}, {}) for target in targets}
    for group in files.values():
        coverage = record_coverage(Suite(checkout(), group[0].tests), [target.file for target in group])
        found |= {target.tests: coverage for target in group}
    return found


def judge_code(target: MutationTarget, name: str, coverage: Coverage, listed: Mapping[str, str]) -> MutantResult:
    """Judge a mutant: of a proven module with the theorems about it alone, of any other with its tests.

    The tests are those that reach the changed lines. `listed` maps accepted survivors to their reasons. A listed
    mutant that is killed counts as killed.
    """
    mutant = mutants_of(target)[name]
    proof = ""
    if target.proven:
        original = (checkout() / target.file).read_text(encoding="utf-8")
        change = target.module, original, mutant.source(), mutant.function
        killer, how = refused(*change)
        proof = "" if killer else equal(*change)
    else:
        pytest_run = _by_tests(target, mutant, mutant.source(), coverage)
        killer, how = pytest_run.failed, pytest_run.message
    if killer:
        return MutantResult(target.name, name, MutantStatus.KILLED, killer, how)
    if proof:
        return MutantResult(target.name, name, MutantStatus.EQUIVALENT, "z3", proof)
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
