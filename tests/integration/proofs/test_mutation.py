"""Mutation of the contract and of sources: what is changed, who notices, and that nothing is killed for free."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter

import pytest
import z3
from tpinit.proofs.claims import THEOREMS, Verdict, right_model
from tpinit.proofs.mutation import workers
from tpinit.proofs.mutation.judge import by_resolver, by_theorems, judge_spec
from tpinit.proofs.mutation.main import mutate
from tpinit.proofs.mutation.result import MutantResult, MutantStatus
from tpinit.proofs.mutation.sources import SourceMutant, source_mutants
from tpinit.proofs.mutation.spec import SpecMutant, spec_mutants
from tpinit.proofs.mutation.terms import apply_change, changes
from tpinit.proofs.mutation.workers import accepted_survivors, stale_entries
from tpinit.proofs.solvers import decide_all
from tpinit.spec.vocabulary import ViolationCode

X, Y = z3.Ints("x y")


def spec(name):
    (found,) = [mutant for mutant in spec_mutants() if mutant.name == name]
    return found


# --- terms ---------------------------------------------------------------------------------------------


def changed(term, leaves=()):
    return [apply_change(term, change) for change in changes(term, leaves)]


def same(one, other):
    solver = z3.Solver()
    solver.add(one != other)
    return solver.check() == z3.unsat


@pytest.mark.parametrize(
    "wanted",
    [X < 1, Y == 2, z3.BoolVal(False), z3.Or(X < 1, Y == 2), z3.Not(z3.And(X < 1, Y == 2))],
    ids=str,
)
def test_conjuncts_are_dropped_and_connectives_swapped(wanted):
    assert any(same(wanted, made) for made in changed(z3.And(X < 1, Y == 2)))


@pytest.mark.parametrize("wanted", [X <= 1, X == 1, X > 1, X < 0, X < 2, X >= 1], ids=str)
def test_comparisons_and_constants_are_moved(wanted):
    assert any(same(wanted, made) for made in changed(X < 1))


def test_the_models_own_words_are_not_looked_into():
    word = z3.And(X < 1, Y == 2)
    assert {change.place for change in changes(z3.And(word, X > 3), [word])} == {(), (0,), (1,), (1, 1)}


# --- the contract --------------------------------------------------------------------------------------


def test_everything_that_the_issue_names_is_mutated():
    names = [mutant.name for mutant in spec_mutants()]
    count = Counter(mutant.target for mutant in spec_mutants())
    assert sum(bool(re.fullmatch(r"row \d+ deleted", name)) for name in names) == 12
    assert sum(bool(re.fullmatch(r"row \d+ with (TPI|TPG|CFG|MPU) [YN]", name)) for name in names) == 48
    for row in right_model().rows:
        assert sum(f"row {row.number} is the error" in name for name in names) >= 9
    for code in ViolationCode:
        assert sum(name.startswith(f"{code.value} at ") for name in names) >= 8, code
    for decision in ("A0 dropped", "D1:", "D2 ", "D4:", "D5:", "D6:"):
        assert any(name.startswith(decision) for name in names), decision
    assert set(count) == {
        *("table", "prose", "definitions", "predicates", "orders", "decisions"),
        "consistent",
    }
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "name",
    [
        "row 7 deleted",
        "row 4 with MPU N",
        "row 2 ends in init_from_config",
        "sizes in the order call.tp_size, config.autotp_size, config.tp.tp_size",
        "A0 dropped",
        "D2 removed",
        "D6: an unset dtype is fp32",
    ],
)
def test_wrong_contracts_are_killed(name):
    names = [mutant.name for mutant in spec_mutants()]
    name = next(one for one in names if one.casefold() == name.casefold())
    judged = judge_spec(spec(name))
    assert judged.status is MutantStatus.KILLED
    assert judged.killer


def test_the_right_contract_is_killed_by_nothing_and_equal_to_itself():
    itself = SpecMutant("predicates", "no change", lambda m: m)
    assert by_theorems(itself) == ("", "")
    assert judge_spec(itself).status is MutantStatus.EQUIVALENT


MESH_FIRST = "the mesh's group before the config's"


def all_killers(mutant):
    killers: list[str] = []
    while killer := by_theorems(mutant, killers)[0]:
        killers.append(killer)
    return killers


def test_a_mutant_that_no_theorem_notices_survives_with_what_tells_it():
    mutant = spec(MESH_FIRST)
    killers = all_killers(mutant)
    assert "two_merges_agree" in killers
    judged = judge_spec(mutant, without=killers)
    assert (judged.status, judged.message) == (MutantStatus.SURVIVED, "differs in effective_group")


# --- consistent errors ---------------------------------------------------------------------------------


WRONG_TWICE = (
    "row 4 ends in init_from_call, in the prose too",
    "row 9 takes size and dtype from CONFIG, in the prose too",
    "row 12 ends in init_from_call, in the prose and in section 4 too",
    "P3's SIZE_MISMATCH without config.tp.tp_size, in section 4 too",
)


@pytest.mark.parametrize("name", WRONG_TWICE)
def test_table_and_prose_with_the_same_error_agree_and_are_killed(name):
    agreement = ("table_and_prose_agree_on_the_outcome", "table_and_prose_agree_on_the_sources")
    for theorem in agreement:
        verdict = decide_all(THEOREMS[theorem].claims(spec(name).apply(right_model()))).verdict
        assert verdict is Verdict.PROVED, theorem
    assert judge_spec(spec(name)).status is MutantStatus.KILLED


@pytest.mark.parametrize("name", [WRONG_TWICE[0], *WRONG_TWICE[2:]])
def test_the_resolver_refutes_a_contract_that_is_wrong_everywhere(name):
    assert by_resolver(spec(name)).startswith("translated_")


def test_the_resolver_does_not_refute_the_right_contract():
    assert by_resolver(SpecMutant("predicates", "no change", lambda m: m)) == ""


# --- sources -------------------------------------------------------------------------------------------

SOURCE = '''
"""What a module says."""
LIMIT = 3


def pick(value: int | None, other: int = 2) -> bool:
    """Say which."""
    if value is not None and value < LIMIT:
        note("small", value)
        return any(one == "low" for one in names(value, other)[1:] if one)
    return not other
'''


@pytest.mark.parametrize(
    "wanted",
    [
        "LIMIT = 4",
        "other: int=3",
        "if value is None and value < LIMIT",
        "if value is not None or value < LIMIT",
        "if value is not None:",
        "if value < LIMIT",
        "value <= LIMIT",
        "value >= LIMIT",
        "pass",
        "all((one == 'low'",
        "one != 'low'",
        "one == 'low?'",
        "names(other, value)",
        "names(value, other)[:]",
        "names(value, other)[2:]",
        "for one in names(value, other)[1:]))",
        "return None",
        "return other",
    ],
)
def test_sources_are_changed_everywhere(wanted):
    assert any(wanted in mutant.source() for mutant in source_mutants("demo", SOURCE))


def test_each_source_mutant_differs_is_a_module_and_has_its_own_name():
    mutants = source_mutants("demo", SOURCE)
    original = ast.unparse(ast.parse(SOURCE))
    texts = [mutant.source() for mutant in mutants]
    assert original not in texts
    assert all(compile(text, "demo", "exec") for text in texts)
    assert len({mutant.name for mutant in mutants}) == len(mutants)
    assert not any("What a module says?" in text or "Say which?" in text or "str | None" in text for text in texts)


def test_names_outlive_lines_and_lines_say_where():
    moved = source_mutants("demo", "\n\n# a comment\n" + SOURCE)
    here = source_mutants("demo", SOURCE)
    assert [mutant.name for mutant in moved] == [mutant.name for mutant in here]
    (small,) = [mutant for mutant in here if "value <= LIMIT" in mutant.name]
    assert (small.function, small.lines) == ("pick", (8,))
    assert all(mutant.lines == () for mutant in here if mutant.name.startswith("demo.LIMIT"))


def test_a_change_that_changes_nothing_is_refused():
    tree = ast.parse("x = 1")
    node = tree.body[0].value
    with pytest.raises(ValueError, match="no change"):
        SourceMutant("demo.x: nothing", "x", (), tree, node, ast.Constant(1)).source()


# --- listed survivors and the command ------------------------------------------------------------------


def test_the_committed_reasons_are_sentences():
    assert all(reason.endswith(".") for reason in accepted_survivors().values())


def test_a_listed_survivor_without_a_reason_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "equivalent.json"
    file.write_text('{"a.b: `x` -> `y`": "equal"}', encoding="utf-8")
    monkeypatch.setattr(workers, "_LISTED", file)
    with pytest.raises(ValueError, match="has no reason"):
        accepted_survivors()


def test_a_listed_survivor_that_is_none_is_stale():
    judged = [MutantResult("t", "killed", MutantStatus.KILLED), MutantResult("t", "kept", MutantStatus.LISTED)]
    reasons = {"killed": "…", "kept": "…", "not sampled": "…", "gone": "…"}
    assert stale_entries(judged, {"killed", "kept", "not sampled"}, reasons) == ["killed", "gone"]


def test_the_command_passes_where_all_are_killed_and_says_by_whom(capsys, tmp_path):
    report = tmp_path / "fates.json"
    assert mutate(["--spec", "--only", MESH_FIRST, "--jobs", "1", "--quiet", "--json", str(report)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^orders +1 +1 +0 +0 +0 +100 %$", said, re.MULTILINE)
    (one,) = json.loads(report.read_text(encoding="utf-8"))["mutants"]
    assert (one["name"], one["fate"]) == (MESH_FIRST, "killed")
    assert one["killer"] in said


def test_the_command_fails_where_the_theorems_are_left_out_that_kill(capsys):
    without = [part for killer in all_killers(spec(MESH_FIRST)) for part in ("--without", killer)]
    assert mutate(["--spec", "--only", MESH_FIRST, "--jobs", "1", "--quiet", *without]) == 1
    said = capsys.readouterr().out
    assert re.search(r"^orders +1 +0 +0 +0 +1 +0.0 %$", said, re.MULTILINE)
    assert "SURVIVED\n  orders/the mesh's group before the config's\n      differs in effective_group" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--without", "no_such_theorem"], "no theorem has that name"),
        (["--sample", "0"], "not a number of 1 or more"),
        (["--all", "--sample", "3"], "not allowed with"),
        (["--only", "no such mutant"], "no mutant is chosen"),
    ],
)
def test_usage_errors(arguments, says, capsys):
    with pytest.raises(SystemExit) as ended:
        mutate(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_a_sample_is_the_same_for_the_same_seed(capsys):
    def drawn(*arguments):
        assert mutate(["--code", "--list", "--sample", "9", *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    assert len(drawn()) == 9
    assert drawn() == drawn("--seed", "0") != drawn("--seed", "1")
