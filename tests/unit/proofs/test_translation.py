"""The translation of the provable subset to terms: it means what Python means, and refuses the rest."""

from __future__ import annotations

import itertools
import types

import pytest
import z3
from tpinit.proofs.claims import Verdict
from tpinit.proofs.edited_source import shipped, source_of
from tpinit.proofs.exploring import Unsupported
from tpinit.proofs.translation import deciding
from tpinit.proofs.translation.deciding import Translated, check
from tpinit.proofs.translation.decisions import inputs_of
from tpinit.proofs.translation.translator import Translator
from tpinit.proofs.translation.values import Indexed, Items, Maybe, Record, item, length
from tpinit.reference import resolve
from tpinit.spec.concrete import assume
from tpinit.spec.model import Model, constant, fresh_symbols
from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Mpu, Section, ViolationCode

HEAD = "from __future__ import annotations\nfrom tpinit.spec.vocabulary import Given, Source\n"
N, X, Y, J = z3.Ints("n x y j")


def _translator(body: str, parameters: str = "x: int, y: int") -> Translator:
    text = body.replace("\n", "\n    ")
    return Translator(f"{HEAD}\n\ndef f({parameters}) -> object:\n    {text}\n", "m")


def _concrete(value):
    if isinstance(value, Items):
        size = z3.simplify(length(value)).as_long()
        return tuple(_concrete(item(value, z3.IntVal(place))) for place in range(size))
    if isinstance(value, Indexed):
        return tuple(_concrete(value.at(z3.IntVal(at))) for at in range(z3.simplify(value.length).as_long()))
    term = z3.simplify(value)
    return z3.is_true(term) if z3.is_bool(term) else term.as_long()


MEANINGS = [
    "return x // 3 * 2 - -x % 3 + (x > y) + (x == y)",
    "return 1 if x > y and not x == 3 or y > 4 else (2 if 0 <= x < y else 3)",
    "if x > y:\n    return x\nif x == y:\n    return 0\nreturn y",
    "if x > 1:\n    a = x\nelse:\n    a = y\nreturn a + 1",
    "found: list[int] = []\nif x > 1:\n    found.append(x)\nfound.append(y)\nif y > 1:\n    found.append(x + y)\n"
    "return tuple(found)",
    "found: list[int] = []\nfor a in (x, y, x + y):\n    if a > 1:\n        found.append(a)\nreturn tuple(found)[1:]",
    "for i, a in enumerate((x, y, 2)):\n"
    "    for b in (x, y, 2)[i + 1 :]:\n        if a == b:\n            return a, b\nreturn ()",
    "return (x, y, *(x, y)[:1], 7)[::-1]",
    "return (x, y, 5)[-2], (x, y, 5)[1:-1], (x, y, 5)[:9], (x, y, 5)[-9:1]",
    "return any(a > 2 for a in (x, y) if a < 4), all(a > 1 for a in (x, y)), len((x, y)[x:])",
    "return tuple(a * b for a in (x, y) for b in (1, a) if a < 3)",
    "return tuple(i * x for i in range(y))[1:] + tuple(i + x for i in range(y))[::-1]",
    "return tuple(i for i in range(y))[:-1], len(tuple(i for i in range(x)))",
]


@pytest.mark.parametrize("body", MEANINGS)
def test_a_translation_means_what_python_means(body):
    module = types.ModuleType("m")
    exec(f"{HEAD}\ndef f(x, y):\n    " + body.replace("\n", "\n    "), module.__dict__)
    for x, y in itertools.product(range(4), range(5)):
        translated = _translator(body).call("f", z3.IntVal(x), z3.IntVal(y))
        assert _concrete(translated) == module.f(x, y), (x, y)


INPUTS = [
    Inputs(6, Call(4, DType.BF16, Group(0, 4)), Section(4, None, DType.FP16), mpu=Mpu(Group(1, 2))),
    Inputs(6, None, Section(4, None, DType.FP32), DType.FP16, mesh=Group(3, 5)),
    Inputs(5, None, Section(0)),
    Inputs(8, Call(-1, DType.FP32), Section(0, 2, DType.FP32)),
    Inputs(8, Call(2, DType.FP32), Section(), DType.BF16),
    Inputs(4, mpu=Mpu(Group(1, 2), Group(2, 2))),
    Inputs(3),
]


@pytest.mark.parametrize("number", range(len(INPUTS)))
def test_the_translated_resolver_decides_as_the_shipped_one_runs(number):
    model = Model(fresh_symbols())
    decision = Translator(source_of(shipped), "m").call("resolve", inputs_of(model))
    ran = resolve(INPUTS[number])
    solver = z3.Solver()
    solver.add(assume(INPUTS[number], model.given_input))
    assert solver.check() == z3.sat
    state = solver.model()
    listed = [
        code
        for code, (guard, _) in zip(ViolationCode, decision.fields["violations"].items, strict=True)
        if z3.is_true(state.eval(guard, model_completion=True))
    ]
    assert listed == [violation.code for violation in ran.violations]
    assert state.eval(decision.fields["row"], model_completion=True).as_long() == ran.row
    assert state.eval(decision.fields["outcome"], model_completion=True).eq(constant(ran.outcome))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return x and y", "what are no truth values"),
        ("return sorted(a for a in (x, y))", r"sorted\(\) of a"),
        ("return tuple(a for a in range(x) if a > y)", "with a condition"),
        ("return (x, *tuple(a for a in range(y)))", "an unbounded sequence inside of a tuple"),
        ("if x > 1:\n    a = 1\nreturn a", "a is not bound on every path"),
        ("a, b = (x, y, x)\nreturn a", "not as many values"),
        ("return (x, y)[::2]", "a slice with a step"),
        ("k = 0\nfor a in range(x):\n    k = k + a\nreturn k", "no invariant for k"),
        (
            "found: list[int] = []\nfor a in range(x):\n    found.append(len(tuple(found)))\nreturn tuple(found)",
            "tuple of a Appended",
        ),
        (
            "found: list[int] = []\nfor a in range(x):\n    if a > 3:\n        found.append(a)\nreturn tuple(found)",
            "one item in each round",
        ),
        ("for a in range(x):\n    return a\nreturn y", "a return inside of a loop"),
        ("return str(x)", "not in the provable subset"),
        ("return Given(Source.WORLD_SIZE, x) == Given(Source.WORLD_SIZE, y)", "are compared"),
    ],
)
def test_what_is_not_translated_is_refused(body, said):
    with pytest.raises(Unsupported, match=said):
        _translator(body).call("f", X, Y)


@pytest.mark.parametrize(
    ("body", "needed"),
    [
        ("return x // y", Y > 0),
        ("return (1, 2)[x]", z3.And(X >= -2, X < 2)),
        ("return x if x > 0 else 1 % y", z3.Or(X > 0, Y > 0)),
        ("if x > 0:\n    return 1", X > 0),
        ("return tuple(i // y for i in range(x))", z3.Or(X <= 0, Y > 0)),
    ],
)
def test_where_python_raises_an_obligation_is_noted(body, needed):
    translator = _translator(body)
    translator.call("f", X, Y)
    solver = z3.Solver()
    noted = z3.ForAll([z3.Int("index 1")], z3.And(*translator.obligations))
    solver.add(noted != needed)
    assert solver.check() == z3.unsat


def test_reading_a_field_of_none_is_an_obligation():
    translator = _translator("return given.value", "given: Given")
    given, there = Record(object, {"value": X}), z3.Bool("there")
    assert translator.call("f", Maybe(there, given)).eq(X)
    assert [str(each) for each in translator.obligations] == ["there"]


def test_a_wrong_invariant_does_not_hold():
    body = "k = 0\nfor a in range(x):\n    k = k + 2\nreturn k"
    for step, holds in ((2, True), (3, False)):
        translator = _translator(body, "x: int")
        translator.invariants = {"k": lambda index, step=step: index * step}
        translator.call("f", X)
        solver = z3.Solver()
        solver.add(z3.Not(z3.And(*translator.obligations)))
        assert (solver.check() == z3.unsat) is holds


# --- deciding ----------------------------------------------------------------------------------------


def _claims(premises, conclusion):
    return lambda _: Translated(premises, [("claim", conclusion)])


@pytest.mark.parametrize(
    ("premises", "conclusion", "verdict"),
    [
        (X > 1, X > 0, Verdict.PROVED),
        (X > 1, X > 2, Verdict.REFUTED),
        (z3.And(X > 1, X < 1), X > 2, Verdict.VACUOUS),
    ],
)
def test_a_claim_holds_or_falls_by_both_solvers(premises, conclusion, verdict):
    assert check(shipped, _claims(premises, conclusion), ()).verdict is verdict


def test_a_function_that_is_not_called_is_not_proven(monkeypatch):
    result = check(shipped, _claims(X > 1, X > 0), ("resolve",))
    assert (result.verdict, result.detail) == (Verdict.UNKNOWN, "resolve was not translated")
    monkeypatch.setitem(deciding.SOLVERS, "shy", lambda _: deciding.SolverAnswer.UNKNOWN)
    assert check(shipped, _claims(X > 1, X > 0), ()).verdict is Verdict.UNKNOWN
    monkeypatch.setitem(deciding.SOLVERS, "shy", lambda _: deciding.SolverAnswer.SAT)
    assert check(shipped, _claims(X > 1, X > 0), ()).verdict is Verdict.DISAGREEMENT


def test_what_may_raise_is_refuted():
    module = types.ModuleType("m")
    module.__dict__["__file__"] = "m"

    def claims(translator):
        translator.require(X > 0)
        return Translated(X >= 0, [])

    result = check(shipped, claims, ())
    assert result.verdict is Verdict.REFUTED
    assert result.detail.startswith("nothing raises")
