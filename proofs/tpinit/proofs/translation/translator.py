"""Translate the functions of a module from their syntax tree to terms.

Each function is inlined where it is called; both branches of a condition are translated and joined. Where Python would
raise, the translation notes an obligation: a term that must hold. `proving` has both solvers decide the obligations
together with what a theorem claims. What is not translated raises `Unsupported`, which fails the proof.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import z3
from tpinit.proofs.exploring import Unsupported
from tpinit.proofs.subset import checker
from tpinit.proofs.translation.expressions import Expressions
from tpinit.proofs.translation.values import FALSE, Appended, Indexed, Items, Value, choose, same, truth

__all__ = ["Frame", "Function", "Translator"]

MAX_DEPTH = 40
# Python's `True == 1` is no equality of terms: a function returns the sort that it declares.
_SORTS = {"int": z3.IntSort(), "bool": z3.BoolSort()}


@dataclass(frozen=True)
class Function:
    """A function of the module, as a value."""

    name: str


@dataclass
class Frame:
    """The variables of one call, and the values that it returned so far, each with its condition."""

    variables: dict[str, Value]
    base: int
    returned: list[tuple[z3.BoolRef, Value]] = field(default_factory=list)
    done: z3.BoolRef = FALSE


class Translator:
    """One module. `obligations` holds the terms that must be true so that nothing raises.

    `summaries` replaces functions by others, of which a theorem assumes only what another theorem proves.
    `invariants` gives, for a variable that a loop over an unbounded sequence carries, its value before round `j`.
    """

    def __init__(self, source: str, name: str) -> None:
        """Parse the source. Raises Unsupported where it is not in the provable subset."""
        problems = checker.check(source, name)
        if problems:
            raise Unsupported(f"the source is not in the provable subset: {'; '.join(problems)}")
        tree = ast.parse(source)
        self.functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        self.constants = dict(_constants(tree))
        self.tested = {id(node) for node in _tested(tree)}
        self.obligations: list[z3.BoolRef] = []
        self.invariants: Mapping[str, Callable[[z3.ArithRef], z3.ArithRef]] = {}
        self.summaries: Mapping[str, Callable[..., Value]] = {}
        self.called: set[str] = set()
        self.path: list[z3.BoolRef] = []
        self._muted = self._depth = self._count = 0

    def call(self, name: str, *arguments: Value) -> Value:
        """Return the value of a function of the module for these arguments."""
        self.called.add(name)
        return self.invoke(name, list(arguments))

    def require(self, holds: z3.BoolRef) -> None:
        """Note that a term must hold on the current path, so that Python does not raise."""
        if self._muted:
            return
        needed = z3.simplify(z3.Implies(z3.And(*self.path), holds) if self.path else holds)
        if not z3.is_true(needed):
            self.obligations.append(needed)

    def fresh(self) -> z3.ArithRef:
        """Return a new index."""
        self._count += 1
        return z3.Int(f"index {self._count}")

    @contextmanager
    def under(self, condition: z3.BoolRef) -> Iterator[None]:
        """Translate what runs only where a condition holds."""
        self.path.append(z3.simplify(condition))
        try:
            yield
        finally:
            self.path.pop()

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Translate again what was translated for an arbitrary index: its obligations are noted already."""
        self._muted += 1
        try:
            yield
        finally:
            self._muted -= 1

    def invoke(self, name: str, arguments: list[Value]) -> Value:
        """Inline a function, or take its summary."""
        if name in self.summaries:
            return self.summaries[name](*arguments)
        node = self.functions[name]
        names = [argument.arg for argument in node.args.args]
        if len(names) != len(arguments):
            raise Unsupported(f"{name}() is given {len(arguments)} arguments")
        if self._depth == MAX_DEPTH:
            raise Unsupported(f"calls deeper than {MAX_DEPTH}")
        frame = Frame(dict(zip(names, arguments, strict=True)), len(self.path))
        self._depth += 1
        try:
            self._block(node.body, frame)
        finally:
            self._depth -= 1
        return self._result(name, frame)

    def _result(self, name: str, frame: Frame) -> Value:
        if not frame.returned:
            raise Unsupported(f"{name}() returns nothing")
        self.require(frame.done)
        result = frame.returned[-1][1]
        for condition, value in reversed(frame.returned[:-1]):
            result = choose(condition, value, result)
        declared = self.functions[name].returns
        said = "" if declared is None else ast.unparse(declared)
        if said in _SORTS and not (z3.is_expr(result) and result.sort() == _SORTS[said]):
            raise Unsupported(f"{name}() does not return the {said} that it declares")
        return result

    def evaluate(self, node: ast.expr, frame: Frame) -> Value:
        """Return the value of an expression."""
        return Expressions(self, frame).value(node)

    # --- statements ----------------------------------------------------------------------------------

    def _block(self, statements: list[ast.stmt], frame: Frame) -> None:
        for statement in statements:
            if z3.is_true(frame.done):
                return
            with self.under(z3.Not(frame.done)):
                self._statement(statement, frame)

    def _statement(self, node: ast.stmt, frame: Frame) -> None:
        if isinstance(node, ast.Return):
            assert node.value is not None
            value = self.evaluate(node.value, frame)
            here = z3.simplify(z3.And(*self.path[frame.base :]))
            frame.returned.append((here, value))
            frame.done = z3.simplify(z3.Or(frame.done, here))
        elif isinstance(node, ast.If):
            self._if(node, frame)
        elif isinstance(node, ast.For):
            self._for(node, frame)
        elif isinstance(node, ast.Assign):
            self._assign(node.targets[0], node.value, frame)
        elif isinstance(node, ast.AnnAssign):
            assert node.value is not None
            self._assign(node.target, node.value, frame)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            self._append(node.value, frame)
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            raise Unsupported(f"line {node.lineno}: {type(node).__name__} is not translated")

    def _assign(self, target: ast.expr, value: ast.expr, frame: Frame) -> None:
        is_list = isinstance(value, ast.List)
        self.bind(target, Items() if is_list else self.evaluate(value, frame), frame)

    def bind(self, target: ast.expr, value: Value, frame: Frame) -> None:
        """Bind the names of a target to a value or to its items."""
        if isinstance(target, ast.Name):
            frame.variables[target.id] = value
            return
        assert isinstance(target, ast.Tuple)
        if not isinstance(value, Items) or not value.is_fixed or len(value.items) != len(target.elts):
            raise Unsupported(f"line {target.lineno}: not as many values as names")
        for part, (_, each) in zip(target.elts, value.items, strict=True):
            self.bind(part, each, frame)

    def _append(self, call: ast.Call, frame: Frame) -> None:
        assert isinstance(call.func, ast.Attribute)
        assert isinstance(call.func.value, ast.Name)
        name = call.func.value.id
        here = z3.simplify(z3.And(*self.path[frame.base :]))
        value = self.evaluate(call.args[0], frame)
        found = frame.variables[name]
        frame.variables[name] = type(found)((*found.items, (here, value)))

    def _if(self, node: ast.If, frame: Frame) -> None:
        condition = z3.simplify(truth(self.evaluate(node.test, frame)))
        before = dict(frame.variables)
        with self.under(condition):
            if not z3.is_false(condition):
                self._block(node.body, frame)
        after_body, frame.variables = frame.variables, dict(before)
        with self.under(z3.Not(condition)):
            if not z3.is_true(condition):
                self._block(node.orelse, frame)
        frame.variables = _joined(condition, after_body, frame.variables)

    def _for(self, node: ast.For, frame: Frame) -> None:
        sequence = self.evaluate(node.iter, frame)
        if isinstance(sequence, Indexed):
            self._unbounded(node, sequence, frame)
            return
        if not isinstance(sequence, Items):
            raise Unsupported(f"line {node.lineno}: a loop over a {type(sequence).__name__} is not translated")
        for guard, value in sequence.items:
            before = dict(frame.variables)
            with self.under(z3.And(guard, z3.Not(frame.done))):
                self.bind(node.target, value, frame)
                self._block(node.body, frame)
            frame.variables = _joined(guard, frame.variables, before)

    def _unbounded(self, node: ast.For, sequence: Indexed, frame: Frame) -> None:
        """Translate a loop over any number of items by induction, with the invariants of the variables it carries."""
        carried = {name for name, value in frame.variables.items() if name in _bound_in(node)}
        lists = {name for name in _appended_in(node) if name in frame.variables}
        for name in carried:
            if name not in self.invariants:
                raise Unsupported(f"line {node.lineno}: no invariant for {name}")
            self.require(same(frame.variables[name], self.invariants[name](z3.IntVal(0))))
        if any(frame.variables[name].items for name in lists):
            raise Unsupported(f"line {node.lineno}: a list that is not empty before the loop")
        base = dict(frame.variables)

        def after(index: z3.ArithRef) -> dict[str, Value]:
            before = {name: self.invariants[name](index) for name in carried} | {name: Appended() for name in lists}
            inner = Frame({**base, **before}, len(self.path))
            self.bind(node.target, sequence.at(index), inner)
            self._block(node.body, inner)
            if inner.returned:
                raise Unsupported(f"line {node.lineno}: a return inside of a loop over any number of items")
            return inner.variables

        index = self.fresh()
        with self.under(z3.And(index >= 0, index < sequence.length)):
            once = after(index)
            for name in carried:
                self.require(same(once[name], self.invariants[name](index + 1)))
            for name in lists:
                if len(once[name].items) != 1 or not Items(once[name].items).is_fixed:
                    raise Unsupported(f"line {node.lineno}: {name} does not get one item in each round")

        def element(name: str) -> Callable[[z3.ArithRef], Value]:
            def at(place: z3.ArithRef) -> Value:
                with self.muted():
                    return after(place)[name].items[0][1]

            return at

        frame.variables |= {name: self.invariants[name](sequence.length) for name in carried}
        frame.variables |= {name: Indexed(sequence.length, element(name)) for name in lists}


def _tested(tree: ast.Module) -> Iterator[ast.expr]:
    """Yield the expressions of which only the truth value is used, so that `and` and `or` may have other operands."""
    for node in ast.walk(tree):
        tests: list[ast.expr] = []
        if isinstance(node, ast.If | ast.IfExp):
            tests = [node.test]
        elif isinstance(node, ast.comprehension):
            tests = list(node.ifs)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            tests = [node.operand]
        while tests:
            test = tests.pop()
            yield test
            if isinstance(test, ast.BoolOp):
                tests += test.values


def _joined(condition: z3.BoolRef, one: dict[str, Value], other: dict[str, Value]) -> dict[str, Value]:
    """Return the variables after a branch. A name that only one branch bound is not bound afterwards."""
    if z3.is_true(condition):
        return one
    if z3.is_false(condition):
        return other
    return {name: choose(condition, one[name], other[name]) for name in one if name in other}


def _bound_in(node: ast.For) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}


def _appended_in(node: ast.For) -> set[str]:
    calls = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)]
    return {f.value.id for f in calls if isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name)}


def _constants(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, node.value
