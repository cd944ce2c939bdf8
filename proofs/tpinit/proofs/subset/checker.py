"""Check that a module is written in the provable subset of Python, by its syntax tree alone.

Every node is refused unless a rule below allows it. A problem names the construct and its line. docs/proofs.md
lists the rules.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator

from tpinit.proofs.subset.expressions import ExpressionChecker, Scope
from tpinit.proofs.subset.grammar import IMPORTS

__all__ = ["check"]


def check(source: str, name: str) -> list[str]:
    """Return the problems of a module's source, each as `name:line: what is refused`. An empty list is a pass."""
    try:
        tree = ast.parse(source, name)
    except (SyntaxError, ValueError) as problem:
        return [f"{name}: is not Python: {problem}"]
    checker = _ModuleChecker(tree)
    checker.module()
    return [f"{name}:{line}: {problem}" for line, problem in sorted(checker.problems)]


class _ModuleChecker:
    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self.problems: list[tuple[int, str]] = []
        self._functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        self._constants: dict[str, ast.expr] = {}
        self._imported: set[str] = set()

    def refuse(self, node: ast.AST, problem: str) -> None:
        self.problems.append((getattr(node, "lineno", 0), problem))

    # --- the module ----------------------------------------------------------------------------------

    def module(self) -> None:
        defined: set[str] = set()
        for index, node in enumerate(self._tree.body):
            for name in self._top(node, index):
                self._may_bind(node, name)
                if name in defined:
                    self.refuse(node, f"{name} is bound twice")
                defined.add(name)
        if "annotations" not in self._imported:
            self.problems.append((1, "annotations are evaluated: import them from __future__"))
        scope = Scope(frozenset(self._functions), self._constants, frozenset(self._imported))
        for value in self._constants.values():
            ExpressionChecker(scope, self.refuse, at_import=True).value(value)
        for function in self._functions.values():
            self._function(function, scope)
        self._recursion()

    def _top(self, node: ast.stmt, index: int) -> Iterator[str]:
        """Check a statement of the module and yield the names that it binds."""
        if isinstance(node, ast.Expr) and _is_text(node.value) and index == 0:
            return
        if isinstance(node, ast.ImportFrom):
            yield from self._import(node)
        elif isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            yield from self._constant(node.targets[0], node.value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield from self._constant(node.target, node.value)
        else:
            self.refuse(node, f"{type(node).__name__} is not in the subset at module level")

    def _import(self, node: ast.ImportFrom) -> Iterator[str]:
        allowed = IMPORTS.get(node.module or "", frozenset())
        for item in node.names:
            if node.level or item.name not in allowed or item.asname is not None:
                self.refuse(node, f"the import of {item.name} from {node.module} is not in the subset")
            self._imported.add(item.name)
            yield item.name

    def _constant(self, target: ast.Name, value: ast.expr) -> Iterator[str]:
        if target.id == "__all__":
            if not isinstance(value, ast.List) or not all(_is_text(item) for item in value.elts):
                self.refuse(value, "__all__ must be a list of names")
            return
        if not _is_type_alias(value):
            self._constants[target.id] = value
        yield target.id

    def _may_bind(self, node: ast.AST, name: str) -> None:
        if name.startswith("__") or hasattr(builtins, name):
            self.refuse(node, f"{name} may not be bound: it is a builtin or a special name")

    def _recursion(self) -> None:
        calls = {
            name: {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and part.id in self._functions}
            for name, node in self._functions.items()
        }
        for name, node in self._functions.items():
            reached, waiting = set(calls[name]), list(calls[name])
            while waiting:
                new = calls[waiting.pop()] - reached
                reached |= new
                waiting += new
            if name in reached:
                self.refuse(node, f"{name} calls itself")

    # --- functions -----------------------------------------------------------------------------------

    def _function(self, node: ast.FunctionDef, scope: Scope) -> None:
        for decorator in node.decorator_list:
            self.refuse(decorator, f"the decorator of {node.name} is not in the subset")
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.refuse(default, f"the default argument of {node.name} is not in the subset")
        extra = (node.args.vararg, node.args.kwarg, *node.args.kwonlyargs, *node.args.posonlyargs)
        for argument in extra:
            if argument is not None:
                self.refuse(argument, f"the kind of parameter {argument.arg} is not in the subset")
        parameters = {argument.arg for argument in node.args.args}
        body = _FunctionChecker(self, scope, parameters)
        for name in parameters:
            body.may_bind(node, name)
        statements = node.body
        if isinstance(statements[0], ast.Expr) and _is_text(statements[0].value):
            statements = statements[1:]
        if not statements:
            self.refuse(node, f"{node.name} has no body")
        body.block(statements)
        body.lists(node)


class _FunctionChecker:
    """The statements of one function. Its parameters are never bound again; a list is only appended to and returned."""

    def __init__(self, module: _ModuleChecker, scope: Scope, parameters: set[str]) -> None:
        self._refuse = module.refuse
        self._scope = scope.inside(parameters)
        self._parameters = parameters
        self._lists: set[str] = set()

    def may_bind(self, node: ast.AST, name: str) -> None:
        if name.startswith("__") or hasattr(builtins, name) or self._scope.is_global(name):
            self._refuse(node, f"{name} may not be bound here: it is a builtin or a name of the module")

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Return) and node.value is not None:
            self._value(node.value)
        elif isinstance(node, ast.If):
            self._value(node.test)
            self.block([*node.body, *node.orelse])
        elif isinstance(node, ast.For) and not node.orelse:
            self._value(node.iter)
            self._bind(node.target)
            self.block(node.body)
        elif isinstance(node, ast.Assign) and len(node.targets) == 1:
            self._assign(node.targets[0], node.value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            self._assign(node.target, node.value)
        elif isinstance(node, ast.Expr) and self._is_append(node.value):
            assert isinstance(node.value, ast.Call)
            self._value(node.value.args[0])
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            self._value(node.value)
            self._refuse(node, "a call whose result is not used is not in the subset")
        else:
            self._refuse(node, f"{type(node).__name__} is not in the subset")

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(value, ast.List) and not value.elts and isinstance(target, ast.Name):
            self._lists.add(target.id)
        else:
            self._value(value)
        self._bind(target)

    def _bind(self, target: ast.expr) -> None:
        if isinstance(target, ast.Tuple):
            for part in target.elts:
                self._bind(part)
        elif isinstance(target, ast.Name):
            self.may_bind(target, target.id)
            if target.id in self._parameters:
                self._refuse(target, f"the parameter {target.id} is bound again")
            self._scope = self._scope.inside({target.id})
        else:
            self._refuse(target, f"an assignment to {type(target).__name__} is not in the subset")

    def _value(self, node: ast.expr) -> None:
        ExpressionChecker(self._scope, self._refuse).value(node)

    def _is_append(self, node: ast.expr) -> bool:
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "append"
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id in self._lists
            and len(node.args) == 1
            and not node.keywords
        )

    def lists(self, function: ast.FunctionDef) -> None:
        """Refuse every use of a list but `name = []`, `name.append(value)` and `tuple(name)`."""
        allowed: set[int] = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tuple":
                allowed |= {id(argument) for argument in node.args}
            elif isinstance(node, ast.Call) and self._is_append(node):
                assert isinstance(node.func, ast.Attribute)
                allowed.add(id(node.func.value))
        bound = [n for n in ast.walk(function) if isinstance(n, ast.Name) and n.id in self._lists]
        for name in self._lists:
            if sum(isinstance(node.ctx, ast.Store) for node in bound if node.id == name) > 1:
                self._refuse(function, f"the list {name} is bound twice")
        for node in bound:
            if isinstance(node.ctx, ast.Load) and id(node) not in allowed:
                self._refuse(node, f"the list {node.id} may only be appended to and turned into a tuple")


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_type_alias(node: ast.expr) -> bool:
    """Return whether a constant only names a type for annotations, such as `tuple[int, ...]`."""
    parts = (ast.Subscript, ast.Name, ast.Tuple, ast.List, ast.Load, ast.Constant)
    return (
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("tuple", *IMPORTS["collections.abc"])
        and all(isinstance(part, parts) for part in ast.walk(node))
    )
