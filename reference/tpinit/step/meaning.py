"""The meaning of torch's operations, over the real numbers: each as a term.

An operation that is not in the tables is an opaque function of all its arguments. Floating-point formats are not
modelled: a conversion between them is the identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tpinit.step.calls import Operation, constant, is_exact, is_real, number_of
from tpinit.step.movement import Movement
from tpinit.step.operations_elementwise import ARITHMETIC, ELEMENTWISE, FILLS, function
from tpinit.step.operations_loss import LOSS, LOSSES
from tpinit.step.operations_movement import MOVEMENTS, SPLITS
from tpinit.step.terms import Shape, Term

__all__ = ["Meaning"]

RULES = {**ELEMENTWISE, **MOVEMENTS, **LOSS}
SEVERAL: dict[str, Callable[[Meaning, Operation], tuple[Term, ...] | None]] = {**SPLITS, **LOSSES}


class Meaning(Movement):
    """Makes the terms of operations."""

    def apply(self, call: Operation) -> tuple[Term, ...]:
        """Return the terms of the results of an operation."""
        rule = RULES.get(call.name)
        if call.name in ARITHMETIC and not is_exact(call.outputs[0].dtype):
            rule = function
        if call.name in FILLS and not self._fills_exactly(call):
            rule = None
        found = rule(self, call) if rule is not None else None
        if found is not None:
            if found.shape != call.outputs[0].shape:
                raise ValueError(
                    f"{call.name} makes {list(found.shape)}, and {list(call.outputs[0].shape)} was recorded"
                )
            return (found,)
        several = SEVERAL.get(call.name)
        if several is not None:
            terms = several(self, call)
            if terms is not None:
                return terms
        return self._opaque(call)

    def _fills_exactly(self, call: Operation) -> bool:
        number = number_of(call.args[FILLS[call.name]])
        dtype = call.outputs[0].dtype
        return number is not None and (
            is_real(dtype) or (number.denominator == 1 and (dtype != "bool" or number in (0, 1)))
        )

    def _opaque(self, call: Operation) -> tuple[Term, ...]:
        args = tuple(constant(arg) for arg in call.args)
        if len(call.outputs) == 1:
            return (self.terms.make(call.name, args, call.outputs[0].shape),)
        return tuple(
            self.terms.make(f"{call.name}#{index}", args, value.shape) for index, value in enumerate(call.outputs)
        )

    def operand(self, arg: Any, shape: Shape = ()) -> Term | None:
        """Return a tensor argument or a number as a term; None for anything else."""
        if isinstance(arg, Term):
            return arg
        number = number_of(arg)
        return None if number is None else self.number(number, shape)
