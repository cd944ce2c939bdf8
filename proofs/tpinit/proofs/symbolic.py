"""Symbolic execution of the shipped source: the real functions, run by the real interpreter.

The functions are called as users call them, on inputs whose integers, dtypes and identities are Z3 terms and whose
optional parts are created only when they are read. `exploring` takes every path. Nothing is approximated: the values
are opaque, and an operation that is not modelled here raises `Unsupported`, which fails the proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import z3
from tpinit.proofs.exploring import Explorer, Path, Unsupported, decide, explore
from tpinit.spec.model import SIZE_OF, Symbols, constant
from tpinit.spec.vocabulary import DType, Group

__all__ = [
    "DP_GIVEN",
    "Explorer",
    "OpaqueValue",
    "Path",
    "SymbolicBool",
    "SymbolicDtype",
    "SymbolicIdentity",
    "SymbolicInt",
    "Unsupported",
    "as_declared",
    "explore",
    "lazy_inputs",
]

T = TypeVar("T")
# Whether an mpu has a data-parallel group. The contract's model does not have it: no decision depends on it.
DP_GIVEN = z3.Bool("dp_given")

# What Python may ask of any value. A class below models some of it; `_opaque` refuses the rest.
_OPERATIONS = """
    str repr format bytes hash bool index int float complex round trunc floor ceil abs len length_hint iter next
    reversed contains getitem setitem delitem call enter exit await aiter anext reduce reduce_ex getstate copy
    deepcopy sizeof dir eq ne lt le gt ge add sub mul matmul truediv floordiv mod divmod pow lshift rshift and xor
    or radd rsub rmul rmatmul rtruediv rfloordiv rmod rdivmod rpow rlshift rrshift rand rxor ror iadd isub imul
    imatmul itruediv ifloordiv imod ipow ilshift irshift iand ixor ior neg pos invert fspath buffer instancecheck
    subclasscheck
"""


def _refuse(what: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise Unsupported(f"the code under proof {what}")

    return refuse


class _Opaque:
    """A value that does not say which class it has: `isinstance` with any other class is refused."""

    __slots__ = ()
    __class__: Any = property(_refuse("asked which type a symbolic value has"))


def _opaque(cls: type[T]) -> type[T]:
    """Refuse every operation that a class does not model."""
    for operation in _OPERATIONS.split():
        name = f"__{operation}__"
        # Python writes a __hash__ of None into a class that defines __eq__.
        if cls.__dict__.get(name) is None:
            setattr(cls, name, _refuse(f"asked for {operation} of a {cls.__name__}"))
    return cls


@_opaque
class SymbolicBool(_Opaque):
    """A bool that depends on the input. `bool()` of it takes a branch."""

    __slots__ = ("term",)

    def __init__(self, term: z3.BoolRef) -> None:
        self.term = term

    def __bool__(self) -> bool:
        return decide(self.term)

    def __add__(self, other: object) -> SymbolicInt:
        return SymbolicInt(_int_term(self) + _int_term(other))

    __radd__ = __add__

    def __mul__(self, other: object) -> SymbolicInt:
        return SymbolicInt(_int_term(self) * _int_term(other))

    __rmul__ = __mul__


def _int_term(value: object) -> z3.ArithRef:
    if type(value) is SymbolicInt:
        return value.term
    if type(value) is SymbolicBool:
        return z3.If(value.term, 1, 0)
    if type(value) in (int, bool):
        return z3.IntVal(int(value))  # type: ignore[call-overload] # an int or a bool
    raise Unsupported(f"the code under proof mixed an integer with {type(value).__name__}")


@_opaque
class SymbolicInt(_Opaque):
    """An unbounded integer that depends on the input. `//` and `%` have Python's meaning."""

    __slots__ = ("term",)

    def __init__(self, term: z3.ArithRef) -> None:
        self.term = term

    def __eq__(self, other: object) -> SymbolicBool:  # type: ignore[override] # the result is a term
        return SymbolicBool(self.term == _int_term(other))

    def __ne__(self, other: object) -> SymbolicBool:  # type: ignore[override]
        return SymbolicBool(self.term != _int_term(other))

    def __lt__(self, other: object) -> SymbolicBool:
        return SymbolicBool(self.term < _int_term(other))

    def __le__(self, other: object) -> SymbolicBool:
        return SymbolicBool(self.term <= _int_term(other))

    def __gt__(self, other: object) -> SymbolicBool:
        return SymbolicBool(self.term > _int_term(other))

    def __ge__(self, other: object) -> SymbolicBool:
        return SymbolicBool(self.term >= _int_term(other))

    def __add__(self, other: object) -> SymbolicInt:
        return SymbolicInt(self.term + _int_term(other))

    def __sub__(self, other: object) -> SymbolicInt:
        return SymbolicInt(self.term - _int_term(other))

    def __rsub__(self, other: object) -> SymbolicInt:
        return SymbolicInt(_int_term(other) - self.term)

    def __mul__(self, other: object) -> SymbolicInt:
        return SymbolicInt(self.term * _int_term(other))

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> SymbolicInt:
        return SymbolicInt(-self.term)

    def __mod__(self, other: object) -> SymbolicInt:
        return _divide(self.term, _int_term(other))[1]

    def __rmod__(self, other: object) -> SymbolicInt:
        return _divide(_int_term(other), self.term)[1]

    def __floordiv__(self, other: object) -> SymbolicInt:
        return _divide(self.term, _int_term(other))[0]

    def __rfloordiv__(self, other: object) -> SymbolicInt:
        return _divide(_int_term(other), self.term)[0]

    def __divmod__(self, other: object) -> tuple[SymbolicInt, SymbolicInt]:
        return _divide(self.term, _int_term(other))

    def __bool__(self) -> bool:
        return decide(self.term != 0)


def _divide(dividend: z3.ArithRef, divisor: z3.ArithRef) -> tuple[SymbolicInt, SymbolicInt]:
    """Return Python's floor division and modulo. Z3's remainder is never negative: negate for a divisor below 0."""
    if decide(divisor == 0):
        raise ZeroDivisionError("integer division or modulo by zero")
    if decide(divisor > 0):
        return SymbolicInt(dividend / divisor), SymbolicInt(dividend % divisor)
    return SymbolicInt((-dividend) / (-divisor)), SymbolicInt(-((-dividend) % (-divisor)))


@_opaque
class SymbolicIdentity(_Opaque):
    """The identity of a group. It supports comparison with another identity and nothing else."""

    __slots__ = ("term",)

    def __init__(self, term: z3.ExprRef) -> None:
        self.term = term

    def __eq__(self, other: object) -> SymbolicBool:  # type: ignore[override] # the result is a term
        return SymbolicBool(self.term == _identity(other))

    def __ne__(self, other: object) -> SymbolicBool:  # type: ignore[override]
        return SymbolicBool(self.term != _identity(other))


def _identity(other: object) -> z3.ExprRef:
    if type(other) is not SymbolicIdentity:
        raise Unsupported(f"the code under proof compared an identity with {type(other).__name__}")
    return other.term


@_opaque
class SymbolicDtype(_Opaque):
    """A dtype that depends on the input. It supports comparison with a dtype and nothing else."""

    __slots__ = ("term",)

    def __init__(self, term: z3.DatatypeRef) -> None:
        self.term = term

    def __eq__(self, other: object) -> SymbolicBool:  # type: ignore[override] # the result is a term
        return SymbolicBool(self.term == _dtype(other))

    def __ne__(self, other: object) -> SymbolicBool:  # type: ignore[override]
        return SymbolicBool(self.term != _dtype(other))


def _dtype(other: object) -> z3.DatatypeRef:
    if type(other) is SymbolicDtype:
        return other.term
    if type(other) is DType:
        return constant(other)
    raise Unsupported(f"the code under proof compared a dtype with {type(other).__name__}")


@_opaque
class OpaqueValue(_Opaque):
    """A value that the decision does not depend on: it can only be passed on."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


@_opaque
class Lazy(_Opaque):
    """A record, which is true. Its fields are created when first read, so that unread ones cause no decision."""

    def __init__(self, **parts: Callable[[], object]) -> None:
        self.__dict__["_parts"] = parts

    def __getattr__(self, name: str) -> object:
        if name not in self.__dict__["_parts"]:
            raise Unsupported(f"the code under proof read .{name}, which is not in the contract")
        value = self.__dict__["_parts"][name]()
        self.__dict__[name] = value
        return value

    def __bool__(self) -> bool:
        return True

    def __setattr__(self, name: str, value: object) -> None:
        raise Unsupported(f"the code under proof wrote .{name} of its input")


def as_declared(function: Callable[..., T]) -> Callable[..., T]:
    """Return a shipped function that is refused where it returns a truth value for a number, or the reverse.

    In Python `True == 1`, so a comparison of values does not see it. A declared result other than `bool` holds none.
    """
    declared = getattr(function, "__annotations__", {}).get("return")

    def call(*arguments: object) -> T:
        value = function(*arguments)
        truths = [type(part) in (bool, SymbolicBool) for part in _parts(value)]
        numbers = declared != "int" or type(value) in (int, SymbolicInt)
        if not numbers or (declared == "bool" and truths != [True]) or (declared != "bool" and any(truths)):
            raise Unsupported(f"the code under proof returned {type(value).__name__} where it declares {declared}")
        return value

    return call


def _parts(value: object) -> Iterator[object]:
    if type(value) is tuple:
        for part in value:
            yield from _parts(part)
    else:
        yield value


def lazy_inputs(s: Symbols) -> Lazy:
    """Return a symbolic `Inputs` over the terms of `s`. Each path needs a new one."""

    def when(term: z3.BoolRef, part: Callable[[], object]) -> Callable[[], object]:
        return lambda: part() if decide(term) else None

    def integer(term: z3.ArithRef) -> Callable[[], object]:
        return lambda: SymbolicInt(term)

    def dtype(term: z3.DatatypeRef) -> Callable[[], object]:
        return lambda: SymbolicDtype(term)

    def group(term: z3.ExprRef) -> Callable[[], object]:
        # Terms stand where values do.
        return lambda: Group(SymbolicIdentity(term), SymbolicInt(SIZE_OF(term)), OpaqueValue(str(term)))  # type: ignore[arg-type]

    def call() -> object:
        return Lazy(tp_size=integer(s.call_size), dtype=dtype(s.call_dtype), tp_group=when(s.tpg, group(s.call_group)))

    def section() -> object:
        return Lazy(
            autotp_size=when(s.autotp_given, integer(s.autotp)),
            tp_size=when(s.alias_given, integer(s.alias)),
            dtype=when(s.dtype_given, dtype(s.dtype)),
            tp_group=when(s.cgroup_given, group(s.cgroup)),
            carried=lambda: OpaqueValue("carried"),
        )

    def mpu() -> object:
        return Lazy(tp_group=group(s.mpu_group), dp_group=when(DP_GIVEN, lambda: OpaqueValue("dp_group")))

    return Lazy(
        call=when(s.tpi, call),
        section=when(s.section, section),
        precision=when(s.precision_given, dtype(s.precision)),
        mpu=when(s.mpu, mpu),
        mesh=when(s.mesh, group(s.mesh_group)),
        world_size=integer(s.world),
    )
