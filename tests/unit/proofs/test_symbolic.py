"""Symbolic execution of shipped functions, and CrossHair: what they can not follow is no proof."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import tpinit.proofs.theorems  # noqa: F401 - registers the theorems
import z3
from tpinit.proofs import crosshair
from tpinit.proofs.claims import THEOREMS, CheckResult, Verdict
from tpinit.proofs.edited_source import edited, shipped
from tpinit.proofs.sealing import sealed
from tpinit.proofs.symbolic import (
    OpaqueValue,
    SymbolicDtype,
    SymbolicIdentity,
    SymbolicInt,
    Unsupported,
    explore,
    lazy_inputs,
)
from tpinit.spec.concrete import assume
from tpinit.spec.model import GroupSort, Model, constant, fresh_symbols
from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Mpu, Section, ViolationCode

X = z3.Int("x")
PROVED, REFUTED = CheckResult(Verdict.PROVED, 1), CheckResult(Verdict.REFUTED, 1)


# --- symbolic execution ------------------------------------------------------------------------------


def _paths(function, assuming=None):
    return list(explore(function, z3.BoolVal(True) if assuming is None else assuming))


def test_every_path_is_taken_once():
    def clamp() -> str:
        x = SymbolicInt(X)
        if x < 0:
            return "below"
        return "above" if x > 9 else "within"

    assert sorted(path.result for path in _paths(clamp)) == ["above", "below", "within"]
    assert [path.result for path in _paths(clamp, X > 20)] == ["above"]


def test_one_magic_integer_is_a_path_of_its_own():
    paths = _paths(lambda: "magic" if SymbolicInt(X) == 7_919_000_003 else "plain")
    magic = next(path for path in paths if path.result == "magic")
    solver = z3.Solver()
    solver.add(magic.condition)
    assert solver.check() == z3.sat
    assert solver.model()[X].as_long() == 7_919_000_003


@pytest.mark.parametrize("divisor", [-3, -1, 1, 2, 7])
@pytest.mark.parametrize("dividend", [-8, -7, -1, 0, 1, 6, 7])
def test_division_means_what_it_means_in_python(dividend, divisor):
    y = z3.Int("y")
    (path,) = [
        path
        for path in _paths(lambda: divmod(SymbolicInt(X), SymbolicInt(y)), z3.And(dividend == X, y == divisor))
        if path.raised is None
    ]
    quotient, remainder = (
        z3.substitute(part.term, (X, z3.IntVal(dividend)), (y, z3.IntVal(divisor))) for part in path.result
    )
    assert (z3.simplify(quotient).as_long(), z3.simplify(remainder).as_long()) == divmod(dividend, divisor)


def test_dividing_by_zero_is_a_path_that_raises():
    raised = [type(path.raised) for path in _paths(lambda: 5 % SymbolicInt(X)) if path.raised]
    assert raised == [ZeroDivisionError]


# Every way to look at a symbolic integer that no term stands for.
MISUSES = {
    "hash": hash,
    "int": int,
    "float": float,
    "str": str,
    "repr": repr,
    "format": lambda x: f"{x}",
    "percent": lambda x: "%s" % x,  # noqa: UP031 - this is what is refused
    "range": range,
    "a text": lambda x: x == "2",
    "a float": lambda x: x + 0.5,
    "division": lambda x: x / 2,
    "power": lambda x: x**2,
    "absolute value": abs,
    "rounding": round,
    "bits": lambda x: x & 1,
    "shift": lambda x: x << 1,
    "isinstance": lambda x: isinstance(x, int),
    "isinstance of several": lambda x: isinstance(x, str | int),
    "class": lambda x: x.__class__,
    "index": lambda x: (1, 2)[x],
    "length": len,
    "a set": lambda x: {x},
    "a key": lambda x: {1: 2}.get(x),
    "pickle": lambda x: __import__("pickle").dumps(x),
    "a copy": lambda x: __import__("copy").copy(x),
    "hash of a truth value": lambda x: hash(x == 1),
    "equal truth values": lambda x: (x == 1) == (x == 2),
}


@pytest.mark.parametrize("name", MISUSES)
def test_what_the_explorer_does_not_follow_fails_the_proof(name):
    with pytest.raises(Unsupported):
        _paths(lambda: MISUSES[name](SymbolicInt(X)))


@pytest.mark.parametrize("make", [lambda: SymbolicIdentity(z3.Const("g", GroupSort)), lambda: OpaqueValue("handle")])
@pytest.mark.parametrize(
    "misuse", [bool, str, hash, len, lambda x: x < 1, lambda x: x == 1, lambda x: isinstance(x, int)]
)
def test_an_identity_and_a_handle_can_only_be_compared_or_passed_on(make, misuse):
    with pytest.raises(Unsupported):
        _paths(lambda: misuse(make()))


@pytest.mark.parametrize("caught", [Exception, BaseException])
def test_a_refusal_cannot_be_swallowed(caught):
    def swallows() -> int:
        try:
            return hash(SymbolicInt(X))
        except caught:
            return 0

    with pytest.raises(Unsupported, match="hash"):
        _paths(swallows)
    assert not issubclass(Unsupported, Exception)


def test_dtypes_are_compared_by_their_values():
    dtype = SymbolicDtype(z3.Const("d", constant(DType.FP16).sort()))
    assert sorted(path.result for path in _paths(lambda: bool(dtype == DType.FP16))) == [False, True]
    with pytest.raises(Unsupported):
        _paths(lambda: dtype == "fp16")


@pytest.mark.parametrize(
    "name", ["isinstance", "type", "id", "str", "sorted", "set", "hash", "getattr", "print", "sum"]
)
def test_a_builtin_that_is_not_modelled_is_refused_in_a_sealed_module(name):
    with sealed(shipped), pytest.raises(Unsupported, match=name):
        shipped.__dict__[name](1)
    assert name not in shipped.__dict__


def test_a_module_outside_of_the_subset_is_not_explored():
    with (
        pytest.raises(Unsupported, match="not in the provable subset"),
        sealed(edited("ok = not", "ok: bool = str and not")),
    ):
        pass


def test_an_input_cannot_be_changed_or_asked_for_what_the_contract_does_not_know():
    symbols = fresh_symbols()
    with pytest.raises(Unsupported, match="wrote"):
        _paths(lambda: setattr(lazy_inputs(symbols), "world_size", 3))
    with pytest.raises(Unsupported, match=r"read \.hostname"):
        _paths(lambda: lazy_inputs(symbols).hostname)


def test_endless_paths_are_not_a_proof(monkeypatch):
    monkeypatch.setattr("tpinit.proofs.exploring.MAX_PATHS", 20)
    monkeypatch.setattr("tpinit.proofs.exploring.MAX_DECISIONS", 50)

    def count(x: SymbolicInt) -> int:
        n = 0
        while x > n:
            n += 1
        return n

    with pytest.raises(Unsupported, match="more than 20 paths"):
        _paths(lambda: count(SymbolicInt(X)), X < 40)
    with pytest.raises(Unsupported, match="more than 50 decisions"):
        _paths(lambda: count(SymbolicInt(X)))


def test_an_edit_that_changes_nothing_is_no_control():
    with pytest.raises(ValueError, match="occurs 0 times"):
        edited("this text is nowhere", "x")


@pytest.mark.parametrize("name", [name for name in THEOREMS if name.startswith(("shipped_", "translated_"))])
def test_every_edited_resolver_is_refuted(name):
    refute = THEOREMS[name].refute
    assert refute is not None
    assert refute().verdict is Verdict.REFUTED


# --- CrossHair ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("c.py:4: info: Confirmed over all paths.\n", Verdict.PROVED),
        ("c.py:4: info: Not confirmed.\n", Verdict.UNKNOWN),
        ("c.py:4: error: false when calling predicate(1)\n", Verdict.REFUTED),
        ("c.py:4: info: Confirmed over all paths.\nc.py:9: info: Not confirmed.\n", Verdict.UNKNOWN),
        ("", Verdict.UNKNOWN),
        ("Traceback (most recent call last):\n", Verdict.UNKNOWN),
    ],
)
def test_only_crosshairs_confirmation_is_a_proof(said, verdict):
    assert crosshair._read(said).verdict is verdict


def test_crosshair_confirms_the_shipped_predicate_and_refutes_a_magic_integer():
    code = ViolationCode.GROUP_AND_MPU
    assert crosshair.check_predicate(code).verdict is Verdict.PROVED
    assert crosshair.check_predicate(code, ("inputs.call.tp_group is not None and", "")).verdict is Verdict.REFUTED


def _symbolic(code: ViolationCode, edit: tuple[str, str] | None = None) -> set[str]:
    return set(inspect.signature(_predicate(crosshair.contract(code, edit))).parameters)


def _predicate(source: str):
    names: dict[str, Any] = {}
    exec(source, names)
    return names["predicate"]


def test_crosshair_runs_the_shipped_predicates_on_the_vocabularys_own_records():
    given = {"tpi": True, "tpg": True, "section": True, "autotp_given": True, "mpu": True, "mesh": True}
    values = {"world": 8, "call_size": 2, "autotp": 2, "call_group": 0, "mpu_group": 1, "cgroup": 1, "mesh_group": 2}
    made = crosshair.real_inputs({**crosshair.FIXED, **given, **values, "mesh_group_size": 4})
    assert made == Inputs(8, Call(2, DType.FP32, Group(0, 1)), Section(2), mpu=Mpu(Group(1, 1)), mesh=Group(2, 4))
    assert {type(part) for part in (made, made.call, made.section, made.mpu)} == {Inputs, Call, Section, Mpu}
    predicate = _predicate(crosshair.contract(ViolationCode.GROUP_AND_MPU))
    assert (predicate(True, True, True, False), predicate(True, False, True, False)) == (True, False)


SIZES_OF_GROUPS = {"call_group_size", "mpu_group_size", "cgroup_size", "mesh_group_size"}
IDENTITIES = {"call_group", "mpu_group", "cgroup", "mesh_group"}


def test_what_the_source_or_the_model_can_read_is_symbolic():
    assert _symbolic(ViolationCode.GROUP_AND_MPU) == {"tpi", "tpg", "mpu", "cgroup_given"}
    assert {"autotp", "alias", "call_size"} <= _symbolic(ViolationCode.SIZE_MISSING)
    assert _symbolic(ViolationCode.GROUP_SIZE_MISMATCH) >= SIZES_OF_GROUPS
    assert _symbolic(ViolationCode.GROUP_IDENTITY_MISMATCH) >= IDENTITIES


# An edit of the predicate of GROUP_AND_MPU, and what it then reads.
_GROUP_AND_MPU = "inputs.call.tp_group is not None and inputs.mpu is not None"


@pytest.mark.parametrize(
    ("also", "reads"),
    [
        ("inputs.world_size != 5", {"world"}),
        ("inputs.precision is None", {"precision_given", "precision"}),
        ("inputs.call.tp_group != inputs.mpu.tp_group", IDENTITIES | SIZES_OF_GROUPS),
        ("not given_dtypes(inputs)", {"dtype", "precision", "section"}),
        ("len(set(supplied_groups(inputs))) < 9", set(crosshair.FIXED)),
        ("inputs.mpu.tp_group != Group(1, 1)", set(crosshair.FIXED)),
    ],
)
def test_what_a_wrong_predicate_reads_is_symbolic_too(also, reads):
    edit = (_GROUP_AND_MPU, f"{_GROUP_AND_MPU} and {also}")
    assert reads <= _symbolic(ViolationCode.GROUP_AND_MPU, edit)


def test_crosshair_refutes_a_comparison_of_whole_groups():
    edit = (_GROUP_AND_MPU, f"{_GROUP_AND_MPU} and inputs.call.tp_group != inputs.mpu.tp_group")
    assert crosshair.check_predicate(ViolationCode.GROUP_AND_MPU, edit).verdict is Verdict.REFUTED


def test_the_model_printed_as_python_means_the_same():
    symbols = fresh_symbols()
    model = Model(symbols)
    for code in ViolationCode:
        text = crosshair.as_python(model.violation(code))
        for inputs in (
            Inputs(6, Call(4, DType.BF16, Group(0, 4)), Section(4, None, DType.FP16), mpu=Mpu(Group(1, 2))),
            Inputs(6, None, Section(4, None, DType.FP32), DType.FP16, mesh=Group(3, 5)),
            Inputs(5, None, Section(0)),
            Inputs(5, None, Section(0, 2)),
            Inputs(4, Call(-1, DType.FP32)),
            Inputs(7, None, Section()),
        ):
            solver = z3.Solver()
            solver.add(assume(inputs, symbols))
            assert solver.check() == z3.sat
            state = solver.model()
            names: dict[str, object] = {"pick_dtype": lambda name: name}
            for name in (*symbols.__dataclass_fields__,):
                term = getattr(symbols, name)
                value = state.eval(term, model_completion=True)
                names[name] = z3.is_true(value) if z3.is_bool(value) else str(value)
                if z3.is_int_value(value):
                    names[name] = value.as_long()
                if term.sort().name() == "Group":
                    from tpinit.spec.model import SIZE_OF

                    names[f"{name}_size"] = state.eval(SIZE_OF(term), model_completion=True).as_long()
            expected = z3.is_true(state.eval(model.violation(code), model_completion=True))
            assert bool(eval(text, names)) == expected, (code, inputs)


def test_a_term_without_a_python_form_is_refused():
    with pytest.raises(ValueError, match="no Python form"):
        crosshair.as_python(z3.Exists([X], X == 1))


def test_constants_of_the_vocabulary_are_distinct():
    assert z3.simplify(constant(DType.BF16) == constant(DType.FP16)).eq(z3.BoolVal(False))
