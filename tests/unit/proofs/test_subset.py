"""The provable subset of Python: every construct outside of it is refused, by name and line."""

from __future__ import annotations

import importlib
import inspect
import types

import pytest
from tpinit.proofs.subset import checker, loaded, vocabulary
from tpinit.proofs.subset.grammar import MODULES

HEAD = """from __future__ import annotations
from collections.abc import Callable, Sequence
from tpinit.spec.vocabulary import DType, Given, Group, Inputs, Source
"""


def _problems(source: str) -> list[str]:
    return checker.check(HEAD + source, "m")


def _function(body: str) -> str:
    return "def f(a: int, given: Given, groups: Sequence) -> int:\n    " + body.replace("\n", "\n    ") + "\n"


ALLOWED = [
    "return a + 1 if a > 0 and not a == 3 else -a // 2 % 5",
    "found: list[int] = []\nfor one in groups:\n    found.append(one)\nreturn tuple(found)",
    "b, c = a, a * 2\nif b < c <= 7:\n    return b\nreturn c - b",
    "return all(len(set(x) & set(y)) == 1 for x in groups for y in groups)",
    "return sorted(r for g in groups for r in g) == list(range(a))",
    "return tuple(zip(*groups, strict=True))",
    "return given.source is Source.CALL_TP_SIZE or given.value is not None",
    "return Given(Source.WORLD_SIZE, value=a)",
    "return (*groups[:1], groups[a])",
    "return {} if given is None else given",
]


@pytest.mark.parametrize("body", ALLOWED)
def test_the_subset_is_allowed(body):
    assert _problems(_function(body)) == []


# A body of a function, and what is said of it.
REFUSED_IN_FUNCTIONS = [
    ("return isinstance(a, bool)", "isinstance() is not in the subset"),
    ("return type(a) is int", "type() is not in the subset"),
    ("return str(a)", "str() is not in the subset"),
    ("return repr(a)", "repr() is not in the subset"),
    ("return hash(given)", "hash() is not in the subset"),
    ("return id(given)", "id() is not in the subset"),
    ("return getattr(given, 'value')", "getattr() is not in the subset"),
    ("return eval('a')", "eval() is not in the subset"),
    ("return print(a)", "print() is not in the subset"),
    ("return open(a)", "open() is not in the subset"),
    ("return int(a)", "int() is not in the subset"),
    ("return float(a)", "float() is not in the subset"),
    ("return sum(groups)", "sum() is not in the subset"),
    ("return min(groups)", "min() is not in the subset"),
    ("return globals()", "globals() is not in the subset"),
    ("return f'{a!r}'", "JoinedStr is not in the subset"),
    ("return '%s' % a", "a constant of type str"),
    ("return 'a'", "a constant of type str"),
    ("return b'a'", "a constant of type bytes"),
    ("return 0.5", "a constant of type float"),
    ("return 1j", "a constant of type complex"),
    ("return ...", "a constant of type ellipsis"),
    ("return a / 2", "the operator Div"),
    ("return a ** 2", "the operator Pow"),
    ("return a << 2", "the operator LShift"),
    ("return a & 2", "the operator BitAnd"),
    ("return a | 2", "the operator BitOr"),
    ("return ~a", "the operator Invert"),
    ("return groups @ groups", "the operator MatMult"),
    ("return a in groups", "the operator In"),
    ("return a not in groups", "the operator NotIn"),
    ("return a is 3", "`is` compares only with None"),
    ("return given is given", "`is` compares only with None"),
    ("return given.value is DType.BF16", "`is` compares only with None"),
    ("return given == None", "None is compared with `is`"),
    ("return given.__class__", "the attribute .__class__"),
    ("return given.source.name", "the attribute .name"),
    ("return given.value.handle", "the attribute .handle"),
    ("return given.value.upper()", "only a function with a name may be called"),
    ("return Source.NOWHERE", "Source.NOWHERE is no member"),
    ("return (lambda: a)()", "only a function with a name may be called"),
    ("b = lambda: a\nreturn b()", "Lambda is not in the subset"),
    ("b = f\nreturn a", "the name f may not be read here"),
    ("return a()", "a() calls a value"),
    ("return (b := a)", "NamedExpr is not in the subset"),
    ("return [x for x in groups]", "ListComp is not in the subset"),
    ("return {x for x in groups}", "SetComp is not in the subset"),
    ("return {x: x for x in groups}", "DictComp is not in the subset"),
    ("return {a: a}", "a dict with entries"),
    ("return {a}", "Set is not in the subset"),
    ("return [a]", "List is not in the subset"),
    ("return (x for x in groups)", "GeneratorExp is not in the subset"),
    ("return tuple(x async for x in groups)", "asynchronous"),
    ("return sorted(groups, key=len)", "sorted() takes exactly 1 argument"),
    ("return range(1, a)", "range() takes exactly 1 argument"),
    ("return list(groups)", "list() is only list(range(n))"),
    ("return set(g for g in groups)", "set() is only set(name)"),
    ("return zip(groups, groups)", "zip() is only"),
    ("return tuple(zip(*groups))", "zip() is only"),
    ("return tuple(zip(*groups, strict=False))", "zip() is only"),
    ("return tuple(len for len in groups)", "len may not be bound"),
    ("yield a", "Expr is not in the subset"),
    ("return (yield a)", "Yield is not in the subset"),
    ("try:\n    return a\nexcept Exception:\n    return 0", "Try is not in the subset"),
    ("raise ValueError", "Raise is not in the subset"),
    ("assert a", "Assert is not in the subset"),
    ("match a:\n    case 1:\n        return 1", "Match is not in the subset"),
    ("with given:\n    return a", "With is not in the subset"),
    ("while a:\n    return a", "While is not in the subset"),
    ("for x in groups:\n    break\nreturn a", "Break is not in the subset"),
    ("for x in groups:\n    continue\nreturn a", "Continue is not in the subset"),
    ("for x in groups:\n    b = x\nelse:\n    b = a\nreturn b", "For is not in the subset"),
    ("import os\nreturn a", "Import is not in the subset"),
    ("from os import environ\nreturn a", "ImportFrom is not in the subset"),
    ("global STATE\nreturn a", "Global is not in the subset"),
    ("del a\nreturn 1", "Delete is not in the subset"),
    ("pass", "Pass is not in the subset"),
    ("return", "Return is not in the subset"),
    ("def g():\n    return a\nreturn g", "FunctionDef is not in the subset"),
    ("class C:\n    x = 1\nreturn C", "ClassDef is not in the subset"),
    ("a = 3\nreturn a", "the parameter a is bound again"),
    ("b = 1\nb += 1\nreturn b", "AugAssign is not in the subset"),
    ("b = c = 1\nreturn b", "Assign is not in the subset"),
    ("given.value = 1\nreturn a", "an assignment to Attribute"),
    ("groups[0] = 1\nreturn a", "an assignment to Subscript"),
    ("groups.append(a)\nreturn a", "a call whose result is not used"),
    ("b, *c = groups\nreturn b", "an assignment to Starred"),
    ("b = []\nc = b\nreturn a", "the list b may only be appended to"),
    ("b = []\nb.sort()\nreturn tuple(b)", "only a function with a name may be called"),
    ("b = []\nb.append(a)\nreturn b", "the list b may only be appended to"),
    ("b = []\nb = []\nreturn tuple(b)", "the list b is bound twice"),
    ("b = []\nreturn len(b)", "the list b may only be appended to"),
    ("return f(a, given, groups)", "f calls itself"),
    ("return Given(**given)", "the keyword argument None"),
    ("return g(a=a)\n", "g() is not in the subset"),
    ("return undefined", "the name undefined may not be read"),
    ("return Given", "the name Given may not be read"),
    ("tuple = a\nreturn a", "tuple may not be bound here"),
]


@pytest.mark.parametrize(("body", "said"), REFUSED_IN_FUNCTIONS)
def test_what_is_not_in_the_subset_is_refused_in_a_function(body, said):
    problems = _problems(_function(body))
    assert any(said in problem for problem in problems), problems


REFUSED_IN_MODULES = [
    ("import os", "Import is not in the subset at module level"),
    ("from os import environ", "the import of environ from os"),
    ("from tpinit.spec.vocabulary import Given as G", "the import of Given"),
    ("from . import vocabulary", "the import of vocabulary"),
    ("range = 3", "range may not be bound"),
    ("def len(a: int) -> int:\n    return a", "len may not be bound"),
    ("def __getattr__(a: int) -> int:\n    return a", "__getattr__ may not be bound"),
    ("Given.__eq__ = None", "Assign is not in the subset at module level"),
    ("STATE = []", "List is not in the subset"),
    ("STATE = open", "the name open may not be read"),
    ("STATE = Given(1, 2)", "Given() is called at import"),
    ("STATE = range(3)", "range() is called at import"),
    ("A = 1\nB = A", "a constant may not read another constant"),
    ("A = 1\nA = 2", "A is bound twice"),
    ("T = tuple[(x := 3), ...]", "Subscript"),
    ("class C:\n    pass", "ClassDef is not in the subset at module level"),
    ("@staticmethod\ndef g(a: int) -> int:\n    return a", "the decorator of g"),
    ("def g(a: int = 1) -> int:\n    return a", "the default argument of g"),
    ("def g(*a: int) -> int:\n    return 1", "the kind of parameter a"),
    ("def g(*, a: int = 2) -> int:\n    return a", "the default argument of g"),
    ("def g(**a: int) -> int:\n    return 1", "the kind of parameter a"),
    ("def g(a: int) -> int:\n    return h(a)\ndef h(a: int) -> int:\n    return g(a)", "h calls itself"),
    ("async def g(a: int) -> int:\n    return a", "AsyncFunctionDef is not in the subset at module level"),
    ("if True:\n    A = 1", "If is not in the subset at module level"),
    ("try:\n    A = 1\nexcept Exception:\n    A = 2", "Try is not in the subset at module level"),
    ("1 + 1", "Expr is not in the subset at module level"),
    ("__all__ = [str(1)]", "__all__ must be a list of names"),
]


@pytest.mark.parametrize(("source", "said"), REFUSED_IN_MODULES)
def test_what_is_not_in_the_subset_is_refused_in_a_module(source, said):
    problems = _problems(source + "\n")
    if said == "Subscript":
        assert problems
        return
    assert any(said in problem for problem in problems), problems


def test_a_problem_names_its_line():
    assert _problems("\n\ndef f(a: int) -> int:\n    return str(a)\n") == ["m:7: str() is not in the subset"]


def test_annotations_that_are_evaluated_are_refused():
    assert checker.check("def f(a: print(1)) -> int:\n    return a\n", "m") == [
        "m:1: annotations are evaluated: import them from __future__"
    ]


def test_what_is_not_python_is_refused():
    assert checker.check("def f(:\n", "m")[0].startswith("m: is not Python")


@pytest.mark.parametrize("name", MODULES)
def test_the_proven_modules_are_in_the_subset_and_are_what_runs(name):
    module = importlib.import_module(name)
    assert checker.check(inspect.getsource(module), name) == []
    assert loaded.problems(module, inspect.getsource(module)) == []


# --- what runs is the source -------------------------------------------------------------------------

SOURCE = "LIMIT = 3\n\n\ndef f(a: int) -> int:\n    return a\n\n\nTABLE = ((1, f),)\n"


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ("m.f = lambda a: a", "f() is not the function"),
        ("m.LIMIT = 4", "LIMIT is not the value"),
        ("m.LIMIT = True", "LIMIT is not the value"),
        ("m.range = None", "range is bound"),
        ("m.TABLE = ((1, print),)", "TABLE is not the value"),
        ("m.f.__defaults__ = (1,)", "f() is not the function"),
        ("m.f.__code__ = (lambda a: a + 1).__code__", "f() is not the function"),
        ("m.__builtins__ = {}", "its builtins were replaced"),
        ("del m.LIMIT", "LIMIT is bound"),
    ],
)
def test_a_replaced_function_is_found(attack, said):
    module = types.ModuleType("m")
    exec(compile(SOURCE, "m", "exec"), module.__dict__)
    assert loaded.problems(module, SOURCE) == []
    exec(attack, {"m": module})
    problems = loaded.problems(module, SOURCE)
    assert any(said in problem for problem in problems), problems


# --- the vocabulary ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "added",
    [
        "    def __bool__(self):\n        return False\n",
        "    def __eq__(self, other):\n        return True\n",
        "    @property\n    def value(self):\n        return 1\n",
        "    size: int = print('at import')\n",
    ],
)
def test_an_operation_of_a_record_is_refused(added):
    record = "@dataclass(frozen=True, slots=True)\nclass Given:\n    value: int\n"
    assert vocabulary.check(record, "v") == []
    assert vocabulary.check(record + added, "v")


@pytest.mark.parametrize(
    "source",
    [
        "@dataclass\nclass Given:\n    value: int\n",
        "class Given(dict):\n    pass\n",
        "class Source(str, Enum, metaclass=Odd):\n    A = 'a'\n",
        "import os\n",
        "from os import environ\n",
        "Given.__eq__ = None\n",
        "def _nothing():\n    return print()\n",
        "@dataclass(frozen=True, slots=True)\nclass Inputs:\n    def __post_init__(self):\n        self.x = 1\n",
        "@dataclass(frozen=True, slots=True)\nclass Inputs:\n    def __post_init__(self):\n        setattr(self)\n",
    ],
)
def test_what_is_no_plain_data_is_refused(source):
    assert vocabulary.check(source, "v")


def test_the_vocabulary_is_plain_data():
    module = importlib.import_module("tpinit.spec.vocabulary")
    assert vocabulary.check(inspect.getsource(module), "v") == []
