"""The cross-entropy of logits that are sharded by vocabulary: a program of the ranks that is recognized as a whole.

From the largest logit of each rank on, the values are no parts of a whole: they stay expressions (`Local`). The loss
and its gradient are compared with the two programs below, operation by operation and constant by constant; what differs
in any place stays stuck. That the programs compute the loss of the whole logits is a theorem for every number of ranks
and every partition of the vocabulary (`proofs/step`).
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tpinit.step.calls import number_of
from tpinit.step.layouts import Kind, Lifted, Local, LocalIds, RangeMask, Stuck, Tensors, whole_index
from tpinit.step.meaning import Meaning
from tpinit.step.operations_loss import is_counted, loss_gradient, token_losses
from tpinit.step.terms import Term

if TYPE_CHECKING:
    from tpinit.step.lift import Lifter, Ranks

__all__ = ["LATE", "STARTS", "local_result"]

Rule = Callable[["Lifter", "Ranks"], "list[Tensors] | None"]


def expression(of: Meaning, name: str, *args: Any) -> Local:
    """Return an expression of claims and constants; equal ones are one object."""
    return Local(of.terms.make(f"local {name}", tuple(_plain(arg) for arg in args), ()))


def _plain(arg: Any) -> Any:
    """Return a claim as an argument of a term."""
    if isinstance(arg, Local):
        return arg.term
    if isinstance(arg, Lifted):
        return ("lifted", arg.term, arg.kind.value, _pieces(arg.index))
    if isinstance(arg, RangeMask):
        return ("range", arg.ids, arg.ranges, arg.negated, arg.trailing)
    if isinstance(arg, LocalIds):
        return ("ids", arg.ids, arg.ranges, arg.zeroed, arg.trailing)
    if isinstance(arg, tuple):
        return tuple(_plain(one) for one in arg)
    number = None if isinstance(arg, bool) else number_of(arg)
    if number is not None:
        return number
    if arg is None or isinstance(arg, (bool, str)):
        return arg
    raise Stuck(f"no rule reads a {type(arg).__name__} beside sharded logits")


def _pieces(index: Any) -> Any:
    return tuple(pieces if pieces is not None else "whole" for pieces in index)


def local_result(lifter: Lifter, ranks: Ranks) -> list[Tensors]:
    """Return the results of an operation of which an operand is an expression."""
    special = _ENDS.get(ranks.name)
    found = special(lifter, ranks) if special is not None else None
    if found is not None:
        return found
    args = _equal_args(ranks)
    if ranks.name == "collective.all_gather":
        if len(ranks.ops[0].outputs) != lifter.ranks or ranks.constant(2) != tuple(range(lifter.ranks)):
            raise Stuck("an all-gather of expressions into one tensor")
        return [expression(lifter.of, ranks.name, args[0], rank) for rank in range(lifter.ranks)]
    if ranks.name.startswith("collective."):
        raise Stuck(f"no rule for {ranks.name} of values that are no parts of a whole")
    return _named(lifter.of, ranks.name, args, len(ranks.ops[0].outputs))


def _named(of: Meaning, name: str, args: tuple[Any, ...], results: int) -> list[Tensors]:
    if results == 1:
        return [expression(of, name, *args)]
    return [expression(of, f"{name}#{place}", *args) for place in range(results)]


def _equal_args(ranks: Ranks) -> tuple[Any, ...]:
    ranks.check_equal()
    return ranks.args


def _largest(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """The largest logit of each rank begins the program."""
    operand = ranks.args[0]
    if not _is_sharded_logits(operand) or ranks.constant(1) not in ((-1,), (1,)):
        return None
    return [expression(lifter.of, "amax", *_equal_args(ranks))]


def _gathered(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    operand, _, ids, *_ = ranks.args
    if not _is_sharded_logits(operand) or not isinstance(ids, LocalIds):
        return None
    return [expression(lifter.of, "gather", *_equal_args(ranks))]


def _in_range_and(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """The mask of the range of a rank, and one that is equal on all ranks."""
    one, other = ranks.args
    if not isinstance(one, RangeMask) or not isinstance(other, Lifted) or not other.is_replicated:
        return None
    return [expression(lifter.of, "bitwise_and", one, other)]


def _is_sharded_logits(claim: Any) -> bool:
    return (
        isinstance(claim, Lifted)
        and claim.kind is Kind.SHARD
        and len(claim.term.shape) == 2
        and claim.index[0] is None
        and claim.index[1] is not None
    )


class _Program:
    """The program of the ranks for logits [n, vocabulary] in ranges: expressions.

    As `parallel/loss.py` computes them.
    """

    def __init__(self, of: Meaning, logits: Lifted, target: Term, ranges: tuple[tuple[int, int], ...]) -> None:
        def make(name: str, *args: Any) -> Local:
            return expression(of, name, *args)

        self.make, self.logits = make, logits
        self.ids = LocalIds(target, ranges, zeroed=True, trailing=True)
        self.inside, outside = RangeMask(target, ranges), RangeMask(target, ranges, negated=True)
        self.largest = make("amax", logits, (-1,), False)
        self.exponentials = make("exp", make("sub", logits, make("unsqueeze", self.largest, -1), 1))
        chosen = make("squeeze", make("gather", logits, -1, self.ids, False), -1)
        statistics = (
            self.largest,
            make("sum", self.exponentials, (-1,), False, None),
            make("masked_fill", chosen, outside, 0),
        )
        own = make("stack", statistics, 0)
        received = tuple(make("collective.all_gather", (own,), rank) for rank in range(len(ranges)))
        of_ranks = make("stack", received, 1)
        maxima, sums, targets = (make(f"unbind#{place}", of_ranks, 0) for place in range(3))
        self.maximum = make("amax", maxima, (0,), False)
        scaled = make("mul", sums, make("exp", make("sub", maxima, self.maximum, 1)))
        self.total = make("sum", scaled, (0,), False, None)
        self.target = make("sum", targets, (0,), False, None)

    def losses(self) -> Local:
        """Return the losses of all tokens, before the ignored ones are replaced by 0."""
        logarithm = self.make("add", self.maximum, self.make("log", self.total), 1)
        return self.make("sub", logarithm, self.target, 1)

    def gradient(self, scale: Lifted, counted: Lifted) -> tuple[Local, Local]:
        """Return what the gradient adds to: the probabilities, and the change at the target."""
        relative = self.make("exp", self.make("sub", self.largest, self.maximum, 1))
        probability = self.make("div", relative, self.total)
        probabilities = self.make(
            "mul", self.exponentials, self.make("unsqueeze", self.make("mul", scale, probability), -1)
        )
        is_target = self.make("mul", scale, self.make("bitwise_and", self.inside, counted))
        return probabilities, self.make("neg", self.make("unsqueeze", is_target, -1))


def _program_of(lifter: Lifter, term: Term) -> _Program:
    """Return the program for the logits and targets that an expression reads."""
    logits = targets = None
    pending, seen = [term], set()
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op == "local gather":
            logits, targets = current.args[0], current.args[2]
        pending.extend(_terms_in(current.args))
    if logits is None or targets is None:
        raise Stuck("values of sharded logits are combined in a way that is not the cross-entropy of this runtime")
    _, logits_term, _, _ = logits
    _, target, ranges, *_ = targets
    position = 0
    for low, high in sorted(ranges):
        if low != position:
            raise Stuck("the ranges of the ranks are not a partition of the vocabulary")
        position = high
    if position != logits_term.shape[1] or (target.shape != logits_term.shape[:1]):
        raise Stuck("the ranges of the ranks are not a partition of the vocabulary")
    pieces = tuple(((low, high - low),) if high > low else () for low, high in ranges)
    return _Program(lifter.of, Lifted(logits_term, Kind.SHARD, (None, pieces)), target, ranges)


def _terms_in(args: Any) -> list[Term]:
    found = []
    for arg in args:
        if isinstance(arg, Term):
            if arg.op.startswith("local "):
                found.append(arg)
        elif isinstance(arg, tuple):
            found.extend(_terms_in(arg))
    return found


def _losses(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """where(target != ignored, losses, 0)."""
    counted, losses, zero = ranks.args
    if not isinstance(losses, Local) or not isinstance(counted, Lifted):
        return None
    program = _program_of(lifter, losses.term)
    logits = program.logits
    ignored = _ignored(lifter, counted, program.ids.ids)
    if losses != program.losses() or not _is_zero(lifter, zero) or ignored is None:
        return None
    of = lifter.of
    scores = of.terms.make("log_softmax", (logits.term, 1), logits.term.shape)
    return [Lifted(token_losses(of, scores, program.ids.ids, ignored), Kind.SHARD, whole_index(1))]


def _gradient(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """scatter_add(probabilities, targets, change)."""
    probabilities, _, ids, change = ranks.args
    if not isinstance(probabilities, Local) or not isinstance(change, Local) or ranks.constant(1) not in (-1, 1):
        return None
    program = _program_of(lifter, probabilities.term)
    scale, counted = _scale_of(change.term)
    if scale is None or counted is None or ids != program.ids:
        return None
    ignored = _ignored(lifter, counted, program.ids.ids)
    if ignored is None or (probabilities, change) != program.gradient(scale, counted):
        return None
    upstream = scale.term
    if upstream.op != "where" or upstream.args[0] is not counted.term or not _is_zero(lifter, upstream.args[2]):
        return None
    logits = program.logits
    term = loss_gradient(lifter.of, logits.term, program.ids.ids, ignored, upstream.args[1])
    return [lifter.checked(term, Kind.SHARD, logits.index, ranks.ops)]


def _scale_of(change: Term) -> tuple[Lifted | None, Lifted | None]:
    """Return the scale and the mask of counted tokens in neg(unsqueeze(scale x (in range and counted)))."""
    try:
        inner = change.args[0].args[0]
        scale, both = inner.args
        counted = both.args[1]
        return _replicated(scale), _replicated(counted)
    except (AttributeError, IndexError, ValueError, TypeError):
        return None, None


def _replicated(arg: Any) -> Lifted | None:
    if not isinstance(arg, tuple) or arg[:1] != ("lifted",) or any(one != "whole" for one in arg[3]):
        return None
    return Lifted(arg[1], Kind(arg[2]), whole_index(len(arg[1].shape))) if arg[2] == Kind.SHARD.value else None


def _ignored(lifter: Lifter, counted: Lifted, target: Term) -> int | None:
    """Return the ignored target if the mask is target != ignored."""
    term = counted.term
    while term.op in ("view", "permute"):
        term = term.args[0]
    number = term.args[-1] if term.op == "ne" else None
    if not counted.is_replicated or not isinstance(number, Fraction) or number.denominator != 1:
        return None
    return int(number) if counted.term is is_counted(lifter.of, target, int(number)) else None


def _is_zero(lifter: Lifter, value: Any) -> bool:
    if isinstance(value, Lifted) and not value.is_replicated:
        return False
    term = value.term if isinstance(value, Lifted) else value
    return isinstance(term, Term) and term is lifter.of.number(Fraction(0), term.shape)


STARTS: dict[str, Rule] = {"amax": _largest, "gather": _gathered}
LATE: dict[str, Rule] = {"bitwise_and": _in_range_and}
_ENDS: dict[str, Rule] = {"where": _losses, "scatter_add": _gradient}
