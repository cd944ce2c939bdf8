"""Translate the expressions of the provable subset to values."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import z3
from tpinit.proofs.exploring import Unsupported
from tpinit.proofs.subset.grammar import ENUMS, RECORDS
from tpinit.proofs.translation import sequences
from tpinit.proofs.translation.sequences import CommonRanks, Flat, Range, RankSet, Sorted
from tpinit.proofs.translation.values import (
    EMPTY_MAPPING,
    FALSE,
    TRUE,
    Indexed,
    Items,
    Maybe,
    Record,
    Value,
    choose,
    count,
    item,
    length,
    lift,
    truth,
)

if TYPE_CHECKING:
    from tpinit.proofs.translation.translator import Frame, Translator

__all__ = ["Expressions"]


class Expressions:
    """The expressions of one call of a function."""

    def __init__(self, translator: Translator, frame: Frame) -> None:
        self._translator, self._frame = translator, frame

    def value(self, node: ast.expr) -> Value:
        """Return the value of an expression."""
        rule = getattr(self, f"_{type(node).__name__.lower()}", None)
        if rule is None:
            raise Unsupported(f"line {node.lineno}: {type(node).__name__} is not translated")
        return rule(node)

    def _constant(self, node: ast.Constant) -> Value:
        return lift(node.value)

    def _name(self, node: ast.Name) -> Value:
        from tpinit.proofs.translation.translator import Frame, Function

        known = self._translator
        if node.id in self._frame.variables:
            return self._frame.variables[node.id]
        if node.id in known.constants:
            return known.evaluate(known.constants[node.id], Frame({}, len(known.path)))
        if node.id in known.functions:
            return Function(node.id)
        raise Unsupported(f"line {node.lineno}: {node.id} is not bound on every path")

    def _attribute(self, node: ast.Attribute) -> Value:
        if isinstance(node.value, ast.Name) and node.value.id in ENUMS:
            return lift(ENUMS[node.value.id][node.attr])
        record = self._there(self.value(node.value))
        if not isinstance(record, Record) or node.attr not in record.fields:
            raise Unsupported(f"line {node.lineno}: .{node.attr} of what is no record with this field")
        return record.fields[node.attr]

    def _there(self, value: Value) -> Value:
        """Return a value that must not be None."""
        if not isinstance(value, Maybe):
            return value
        self._translator.require(value.present)
        if value.value is None:
            raise Unsupported("None is used as a value")
        return value.value

    def _number(self, value: Value) -> z3.ArithRef:
        value = self._there(value)
        if isinstance(value, z3.BoolRef):
            return z3.If(value, z3.IntVal(1), z3.IntVal(0))
        if not isinstance(value, z3.ArithRef):
            raise Unsupported("arithmetic with what is no number")
        return value

    # --- operators -----------------------------------------------------------------------------------

    def _boolop(self, node: ast.BoolOp) -> Value:
        """Translate `and` and `or`. An operand that is no truth value is refused where Python would return it."""
        terms: list[z3.BoolRef] = []
        stop = isinstance(node.op, ast.Or)
        entered = 0
        for part in node.values:
            value = self.value(part)
            if not isinstance(value, z3.BoolRef) and id(node) not in self._translator.tested:
                raise Unsupported(f"line {node.lineno}: `and` and `or` of what are no truth values")
            terms.append(truth(value))
            self._translator.path.append(z3.simplify(z3.Not(terms[-1]) if stop else terms[-1]))
            entered += 1
        del self._translator.path[len(self._translator.path) - entered :]
        return z3.simplify(z3.Or(*terms) if stop else z3.And(*terms))

    def _unaryop(self, node: ast.UnaryOp) -> Value:
        value = self.value(node.operand)
        return z3.Not(truth(value)) if isinstance(node.op, ast.Not) else -self._number(value)

    def _binop(self, node: ast.BinOp) -> Value:
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(node.op, ast.BitAnd):
            return CommonRanks(left, right)
        if isinstance(left, Items | Indexed) and isinstance(node.op, ast.Add):
            return sequences.concatenated(left, right)
        one, other = self._number(left), self._number(right)
        if isinstance(node.op, ast.Add):
            return one + other
        if isinstance(node.op, ast.Sub):
            return one - other
        if isinstance(node.op, ast.Mult):
            return one * other
        self._translator.require(other > 0)  # where Python's division is that of SMT
        return one / other if isinstance(node.op, ast.FloorDiv) else one % other

    def _compare(self, node: ast.Compare) -> Value:
        parts, left = [], self.value(node.left)
        for operator, comparator in zip(node.ops, node.comparators, strict=True):
            right = self.value(comparator)
            parts.append(self._comparison(operator, left, right))
            left = right
        return z3.simplify(z3.And(*parts))

    def _comparison(self, operator: ast.cmpop, left: Value, right: Value) -> z3.BoolRef:
        if isinstance(operator, ast.Is | ast.Eq):
            return self._equal(left, right)
        if isinstance(operator, ast.IsNot | ast.NotEq):
            return z3.Not(self._equal(left, right))
        one, other = self._number(left), self._number(right)
        if isinstance(operator, ast.Lt):
            return one < other
        if isinstance(operator, ast.LtE):
            return one <= other
        return one > other if isinstance(operator, ast.Gt) else one >= other

    def _equal(self, left: Value, right: Value) -> z3.BoolRef:
        if isinstance(left, Sorted) and isinstance(right, Range):
            return sequences.is_permutation(left, right, self._translator.fresh)
        if isinstance(left, Maybe) or isinstance(right, Maybe):
            one = left if isinstance(left, Maybe) else Maybe(TRUE, left)
            other = right if isinstance(right, Maybe) else Maybe(TRUE, right)
            both = z3.And(one.present, other.present)
            if one.value is None or other.value is None:
                return z3.And(z3.Not(one.present), z3.Not(other.present))
            equal = self._equal(one.value, other.value) if isinstance(one.value, z3.ExprRef) else FALSE
            return z3.If(both, equal, one.present == other.present)
        if isinstance(left, z3.BoolRef | z3.ArithRef) and isinstance(right, z3.BoolRef | z3.ArithRef):
            return self._number(left) == self._number(right)
        if isinstance(left, z3.ExprRef) and isinstance(right, z3.ExprRef) and left.sort() == right.sort():
            return left == right
        if isinstance(left, Record | Items | z3.ExprRef) and isinstance(right, Record | Items | z3.ExprRef):
            raise Unsupported("records, sequences or values of two kinds are compared")
        raise Unsupported(f"a {type(left).__name__} is compared with a {type(right).__name__}")

    def _ifexp(self, node: ast.IfExp) -> Value:
        condition = z3.simplify(truth(self.value(node.test)))
        if z3.is_true(condition) or z3.is_false(condition):
            return self.value(node.body if z3.is_true(condition) else node.orelse)
        with self._translator.under(condition):
            one = self.value(node.body)
        with self._translator.under(z3.Not(condition)):
            other = self.value(node.orelse)
        return choose(condition, one, other)

    # --- sequences -----------------------------------------------------------------------------------

    def _tuple(self, node: ast.Tuple) -> Value:
        found: list[tuple[z3.BoolRef, Value]] = []
        for part in node.elts:
            if isinstance(part, ast.Starred):
                inner = self.value(part.value)
                if not isinstance(inner, Items):
                    raise Unsupported(f"line {node.lineno}: an unbounded sequence inside of a tuple")
                found.extend(inner.items)
            else:
                found.append((TRUE, self.value(part)))
        return Items(tuple(found))

    def _dict(self, _: ast.Dict) -> Value:
        return EMPTY_MAPPING

    def _subscript(self, node: ast.Subscript) -> Value:
        sequence = self.value(node.value)
        if not isinstance(sequence, Items | Indexed):
            raise Unsupported(f"line {node.lineno}: an item of a {type(sequence).__name__}")
        if isinstance(node.slice, ast.Slice):
            bounds = (node.slice.lower, node.slice.upper, node.slice.step)
            return sequences.sliced(sequence, *(b if b is None else self._number(self.value(b)) for b in bounds))
        index, size = self._number(self.value(node.slice)), length(sequence)
        self._translator.require(z3.And(index < size, index >= -size))
        place = z3.simplify(z3.If(index < 0, index + size, index))
        return item(sequence, place) if isinstance(sequence, Items) else sequence.at(place)

    def _generatorexp(self, node: ast.GeneratorExp) -> Value:
        return self._generated(node, 0)

    def _generated(self, node: ast.GeneratorExp, depth: int) -> Value:
        generator, is_last = node.generators[depth], depth == len(node.generators) - 1
        source = self.value(generator.iter)
        if isinstance(source, Indexed):
            return self._mapped(node, depth, source)
        if not isinstance(source, Items):
            raise Unsupported(f"line {node.lineno}: a generator over a {type(source).__name__}")
        found: list[tuple[z3.BoolRef, Value]] = []
        for guard, value in source.items:
            inner = self._inside(generator.target, value)
            conditions = [guard]
            self._translator.path.append(guard)
            for test in generator.ifs:
                conditions.append(z3.simplify(truth(inner.value(test))))
                self._translator.path.append(conditions[-1])
            if not any(z3.is_false(condition) for condition in conditions):
                rest = Items.of(inner.value(node.elt)) if is_last else inner._generated(node, depth + 1)
                if not isinstance(rest, Items):
                    raise Unsupported(f"line {node.lineno}: an unbounded generator inside of a bounded one")
                found += [(z3.simplify(z3.And(*conditions, g)), each) for g, each in rest.items]
            del self._translator.path[len(self._translator.path) - len(conditions) :]
        return Items(tuple(found))

    def _mapped(self, node: ast.GeneratorExp, depth: int, source: Indexed) -> Value:
        """Translate a generator over an unbounded sequence: its element is a function of the index."""
        generator, is_last = node.generators[depth], depth == len(node.generators) - 1
        if generator.ifs or len(node.generators) - depth > 2:
            raise Unsupported(f"line {node.lineno}: a generator with a condition over an unbounded sequence")

        def at(index: z3.ArithRef) -> Value:
            inner = self._inside(generator.target, source.at(index))
            return inner.value(node.elt) if is_last else inner._generated(node, depth + 1)

        index = self._translator.fresh()
        with self._translator.under(z3.And(index >= 0, index < source.length)):
            at(index)  # once for an arbitrary index, for the obligations
        mapped = Indexed(source.length, self._muted(at))
        return mapped if is_last else Flat(mapped, self._whole(source, mapped))

    def _whole(self, source: Indexed, mapped: Indexed) -> z3.ExprRef | None:
        """Return the token of the groups if the generator yields each member of each group as it is."""
        group, member = self._translator.fresh(), self._translator.fresh()
        given, inner = source.at(group), mapped.at(group)
        whole = isinstance(given, Indexed) and isinstance(inner, Indexed) and given.length.eq(inner.length)
        if source.token is None or not whole:
            return None
        one, other = given.at(member), inner.at(member)
        return source.token if isinstance(one, z3.ExprRef) and one.eq(other) else None

    def _muted(self, at: Callable[[z3.ArithRef], Value]) -> Callable[[z3.ArithRef], Value]:
        def again(index: z3.ArithRef) -> Value:
            with self._translator.muted():
                return at(index)

        return again

    def _inside(self, target: ast.expr, value: Value) -> Expressions:
        from tpinit.proofs.translation.translator import Frame

        frame = Frame(dict(self._frame.variables), len(self._translator.path))
        self._translator.bind(target, value, frame)
        return Expressions(self._translator, frame)

    # --- calls ---------------------------------------------------------------------------------------

    def _call(self, node: ast.Call) -> Value:
        from tpinit.proofs.translation.translator import Function

        assert isinstance(node.func, ast.Name)
        name = node.func.id
        if name in RECORDS and name not in self._frame.variables:
            return self._record(node, name)
        called = self._name(node.func) if name in (*self._frame.variables, *self._translator.functions) else None
        if isinstance(called, Function):
            return self._translator.invoke(called.name, [self.value(argument) for argument in node.args])
        if called is not None:
            raise Unsupported(f"line {node.lineno}: {name} is no function")
        argument = node.args[0]
        values = self.value(argument.value if isinstance(argument, ast.Starred) else argument)
        return getattr(self, f"_builtin_{name}")(values)

    def _record(self, node: ast.Call, name: str) -> Value:
        record = RECORDS[name]
        fields = dataclasses.fields(record)
        given = {field.name: self.value(argument) for field, argument in zip(fields, node.args, strict=False)}
        given |= {str(keyword.arg): self.value(keyword.value) for keyword in node.keywords}
        for field in fields:
            if field.name not in given:
                if field.default is dataclasses.MISSING:
                    raise Unsupported(f"line {node.lineno}: {name} without {field.name}")
                given[field.name] = lift(field.default)
        if len(node.args) > len(fields) or set(given) != {field.name for field in fields}:
            raise Unsupported(f"line {node.lineno}: the fields of {name} are others")
        return Record(record, given)

    def _builtin_bool(self, value: Value) -> Value:
        return truth(value)

    def _builtin_len(self, value: Value) -> Value:
        if isinstance(value, CommonRanks):
            return sequences.CARDINALITY(value.one.token, value.other.token)
        return length(value)

    def _builtin_any(self, value: Value) -> Value:
        return z3.simplify(sequences.any_of(value, self._translator.fresh))

    def _builtin_all(self, value: Value) -> Value:
        return z3.simplify(sequences.all_of(value, self._translator.fresh))

    def _builtin_tuple(self, value: Value) -> Value:
        if not isinstance(value, Items | Indexed):
            raise Unsupported(f"a tuple of a {type(value).__name__} is not translated")
        return value

    def _builtin_range(self, value: Value) -> Value:
        stop = self._number(value)
        return Indexed(z3.If(stop > 0, stop, z3.IntVal(0)), lambda index: index)

    def _builtin_list(self, value: Value) -> Value:
        stop = value.length.arg(1) if z3.is_app_of(value.length, z3.Z3_OP_ITE) else value.length
        return Range(stop)

    def _builtin_enumerate(self, value: Value) -> Value:
        if isinstance(value, Indexed):
            return Indexed(value.length, lambda index: Items.of(index, value.at(index)))
        guards = [guard for guard, _ in value.items]
        places = [count(guards[:index]) for index in range(len(guards))]
        return Items(tuple((guard, Items.of(at, each)) for at, (guard, each) in zip(places, value.items, strict=True)))

    def _builtin_sorted(self, value: Value) -> Value:
        if not isinstance(value, Flat):
            raise Unsupported(f"sorted() of a {type(value).__name__} is not translated")
        return Sorted(value)

    def _builtin_set(self, value: Value) -> Value:
        if not isinstance(value, Indexed) or value.token is None:
            raise Unsupported("set() of a sequence that is not a given group")
        return RankSet(value.token)

    def _builtin_zip(self, value: Value) -> Value:
        if isinstance(value, Indexed):
            one, other = self._translator.fresh(), self._translator.fresh()
            inside = [z3.And(each >= 0, each < value.length) for each in (one, other)]
            equal = length(value.at(one)) == length(value.at(other))
            self._translator.require(z3.Implies(z3.And(*inside), equal))
        return sequences.transposed(value)
