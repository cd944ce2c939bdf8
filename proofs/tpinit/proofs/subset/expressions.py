"""Check the expressions of the provable subset: names, fields, operators, calls of known functions, generators."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tpinit.proofs.subset.grammar import BUILTINS, ENUMS, FIELDS, OPERATORS, RECORDS, SEALED

__all__ = ["ExpressionChecker", "Scope"]


@dataclass(frozen=True)
class Scope:
    """The names that an expression may read: functions and constants of the module, imports, local names.

    `callable_names` are local names that a generator takes out of a constant of the module, whose functions it calls.
    """

    functions: frozenset[str]
    constants: Mapping[str, ast.expr]
    imported: frozenset[str]
    local: frozenset[str] = frozenset()
    callable_names: frozenset[str] = frozenset()

    def inside(self, names: set[str]) -> Scope:
        """Return the scope with more local names."""
        return replace(self, local=self.local | names, callable_names=self.callable_names - names)

    def is_global(self, name: str) -> bool:
        """Return whether the module defines or imports the name."""
        return name in self.functions or name in self.constants or name in self.imported


class ExpressionChecker:
    """Refuses each part of an expression that no rule allows. `at_import` is true for constants of the module."""

    def __init__(self, scope: Scope, refuse: Callable[[ast.AST, str], None], at_import: bool = False) -> None:
        self._scope, self._refuse, self._at_import = scope, refuse, at_import

    def value(self, node: ast.expr) -> None:
        """Check one expression."""
        rule = getattr(self, f"_{type(node).__name__.lower()}", None)
        if rule is None:
            self._refuse(node, f"{type(node).__name__} is not in the subset")
        else:
            rule(node)

    def _constant(self, node: ast.Constant) -> None:
        if type(node.value) not in (int, bool, type(None)):
            self._refuse(node, f"a constant of type {type(node.value).__name__} is not in the subset")

    def _name(self, node: ast.Name) -> None:
        scope = self._scope
        if node.id in scope.local:
            return
        if node.id in scope.constants:
            if self._at_import:
                self._refuse(node, "a constant may not read another constant")
        elif not (node.id in scope.functions and self._at_import):
            self._refuse(node, f"the name {node.id} may not be read here")

    def _attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.value.id in ENUMS and node.value.id in self._scope.imported:
            if node.attr not in ENUMS[node.value.id].__members__:
                self._refuse(node, f"{node.value.id}.{node.attr} is no member")
            return
        if node.attr not in FIELDS:
            self._refuse(node, f"the attribute .{node.attr} is not in the subset")
        self.value(node.value)

    def _boolop(self, node: ast.BoolOp) -> None:
        for part in node.values:
            self.value(part)

    def _unaryop(self, node: ast.UnaryOp) -> None:
        self._operator(node, node.op)
        self.value(node.operand)

    def _binop(self, node: ast.BinOp) -> None:
        common = isinstance(node.op, ast.BitAnd) and _is_call(node.left, "set") and _is_call(node.right, "set")
        if not common:
            self._operator(node, node.op)
        self.value(node.left)
        self.value(node.right)

    def _operator(self, node: ast.AST, operator: ast.AST) -> None:
        if not isinstance(operator, OPERATORS):
            self._refuse(node, f"the operator {type(operator).__name__} is not in the subset")

    def _compare(self, node: ast.Compare) -> None:
        self.value(node.left)
        for operator, right in zip(node.ops, node.comparators, strict=True):
            self._operator(node, operator)
            if isinstance(operator, ast.Is | ast.IsNot) and not (_is_none(right) or self._is_member(right)):
                self._refuse(node, "`is` compares only with None and with members of enums (a dtype with ==)")
            if not isinstance(operator, ast.Is | ast.IsNot) and _is_none(right):
                self._refuse(node, "None is compared with `is`")
            self.value(right)

    def _is_member(self, node: ast.expr) -> bool:
        return (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ENUMS
            and node.value.id not in SEALED
        )

    def _ifexp(self, node: ast.IfExp) -> None:
        for part in (node.test, node.body, node.orelse):
            self.value(part)

    def _tuple(self, node: ast.Tuple) -> None:
        for part in node.elts:
            self.value(part.value if isinstance(part, ast.Starred) else part)

    def _dict(self, node: ast.Dict) -> None:
        if node.keys:
            self._refuse(node, "a dict with entries is not in the subset")

    def _subscript(self, node: ast.Subscript) -> None:
        self.value(node.value)
        if isinstance(node.slice, ast.Slice):
            for bound in (node.slice.lower, node.slice.upper, node.slice.step):
                if bound is not None:
                    self.value(bound)
        else:
            self.value(node.slice)

    def _call(self, node: ast.Call) -> None:
        if not isinstance(node.func, ast.Name):
            self._refuse(node, "only a function with a name may be called")
            return
        name, scope = node.func.id, self._scope
        if self._at_import:
            self._refuse(node, f"{name}() is called at import")
        if name in scope.local:
            if name not in scope.callable_names:
                self._refuse(node, f"{name}() calls a value")
        elif name in BUILTINS and not scope.is_global(name):
            self._builtin(node, name)
            return
        elif name not in scope.functions and not (name in RECORDS and name in scope.imported):
            self._refuse(node, f"{name}() is not in the subset")
        for argument in node.args:
            self.value(argument)
        for keyword in node.keywords:
            if keyword.arg is None or name not in RECORDS:
                self._refuse(node, f"the keyword argument {keyword.arg} is not in the subset")
            self.value(keyword.value)

    def _builtin(self, node: ast.Call, name: str) -> None:
        if name == "zip":
            self._zip(node)
            return
        if len(node.args) != BUILTINS[name] or node.keywords:
            self._refuse(node, f"{name}() takes exactly {BUILTINS[name]} argument here")
        for argument in node.args:
            generated = isinstance(argument, ast.GeneratorExp)
            if generated and name in ("tuple", "any", "all", "sorted"):
                assert isinstance(argument, ast.GeneratorExp)
                self._generator(argument)
            elif name == "list" and not _is_call(argument, "range"):
                self._refuse(node, "list() is only list(range(n)) here")
            elif name == "set" and not isinstance(argument, ast.Name):
                self._refuse(node, "set() is only set(name) here")
            else:
                self.value(argument)

    def _zip(self, node: ast.Call) -> None:
        strict = [word for word in node.keywords if word.arg == "strict"]
        is_strict = len(strict) == len(node.keywords) == 1 and _is_true(strict[0].value)
        if len(node.args) != 1 or not isinstance(node.args[0], ast.Starred) or not is_strict:
            self._refuse(node, "zip() is only zip(*groups, strict=True) here")
            return
        self.value(node.args[0].value)

    def _generator(self, node: ast.GeneratorExp) -> None:
        inner = self
        for generator in node.generators:
            if generator.is_async:
                self._refuse(node, "an asynchronous generator is not in the subset")
            inner.value(generator.iter)
            names = _names(generator.target)
            if names is None:
                self._refuse(node, "a generator binds only names")
                return
            for name in names:
                if inner._scope.is_global(name) or name in BUILTINS or name.startswith("__"):
                    self._refuse(node, f"{name} may not be bound here: it is a builtin or a name of the module")
            scope = inner._scope.inside(names)
            if isinstance(generator.iter, ast.Name) and generator.iter.id in scope.constants:
                scope = replace(scope, callable_names=scope.callable_names | names)
            inner = ExpressionChecker(scope, self._refuse, self._at_import)
            for condition in generator.ifs:
                inner.value(condition)
        inner.value(node.elt)


def _is_call(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_true(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _names(target: ast.expr) -> set[str] | None:
    if isinstance(target, ast.Name):
        return {target.id}
    if isinstance(target, ast.Tuple) and all(isinstance(part, ast.Name) for part in target.elts):
        return {part.id for part in target.elts if isinstance(part, ast.Name)}
    return None
