"""The cross-entropy of logits that are cut by vocabulary, on exact numbers: the claim is true, and a changed program is
stuck.

Exponentials are powers of 2, of which the laws and the values are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from property.step.step_arrays import exact
from property.step.step_programs import Program
from property.step.step_values import Values
from tpinit.step.graph import Ref
from tpinit.step.layouts import Lifted

IGNORED = -100


@dataclass(frozen=True)
class Changed:
    """A loss program with one thing changed, by its name; "" is none."""

    what: str = ""

    def one(self, name: str, right: Any, wrong: Any) -> Any:
        """Return the wrong thing if this one is changed."""
        return wrong if self.what == name else right


def written(seed: int, changed: Changed) -> tuple[Program, int, int]:
    """Return a program of 2 or 3 ranks, its losses and its gradient."""
    rng = Random(seed)
    program = Program(rng.choice([2, 3]))
    lengths = [rng.randint(1, 3) for _ in range(program.ranks)]
    lows = [sum(lengths[:rank]) for rank in range(program.ranks)]
    vocabulary, tokens = sum(lengths), 3
    pieces = tuple(((low, length),) for low, length in zip(lows, lengths, strict=True))

    def run(name: str, *each: Any, dtype: str = "float32") -> Ref:
        return Ref(program.run(name, *each, dtype=dtype)[0])

    numbers = exact([[rng.randint(-3, 3) for _ in range(vocabulary)] for _ in range(tokens)])
    logits = Ref(program.leaf("logits", numbers, [None, pieces]))
    target = Ref(
        program.leaf("target", exact([rng.randrange(vocabulary), IGNORED, rng.randrange(vocabulary)]), [None], "int64")
    )
    upstream = Ref(program.leaf("upstream", exact([rng.randint(1, 4) for _ in range(tokens)]), [None]))
    zero = run("mul", (Ref(program.leaf("zero", exact(0), [])), 0))
    zero_id = run("mul", (target, 0), dtype="int64")

    at_least = run("ge", *[(target, low) for low in lows], dtype="bool")
    shift = changed.one("bound", 0, 1)
    below = run(
        "lt", *[(target, low + length - shift) for low, length in zip(lows, lengths, strict=True)], dtype="bool"
    )
    inside = run("bitwise_and", (at_least, below), dtype="bool")
    shifted = run("sub", *[(target, low, 1) for low in lows], dtype="int64")
    ids = run("unsqueeze", (run("where", (inside, shifted, zero_id), dtype="int64"), -1), dtype="int64")
    outside = run("bitwise_not", (inside,), dtype="bool")

    largest = run("amax", (logits, (-1,), False))
    powers = run("exp", (run("sub", (logits, run("unsqueeze", (largest, -1)), changed.one("factor", 1, 2))),))
    chosen = run("squeeze", (run("gather", (logits, -1, ids, False)), -1))
    masked = changed.one("mask", run("masked_fill", (chosen, outside, 0)), chosen)
    own = run("stack", ((largest, run("sum", (powers, (-1,), False, None)), masked), 0))
    received = tuple(Ref(value) for value in program.run("collective.all_gather", (own, None)))
    received = changed.one("gather", received, (received[0],) * program.ranks)
    maxima, sums, targets = map(Ref, program.run("unbind", (run("stack", (received, 1)), 0)))
    greatest = run("amax", (maxima, (0,), False))
    rescaled = run("mul", (sums, run("exp", (run("sub", (maxima, greatest, 1)),))))
    total = run("sum", (changed.one("rescaling", rescaled, sums), (0,), False, None))
    logarithm = run("add", (greatest, run("log", (total,)), 1))
    of_target = run("sum", (targets, (0,), False, None))
    losses = run("sub", (changed.one("logarithm", logarithm, run("log", (total,))), of_target, 1))
    counted = run("ne", (target, IGNORED), dtype="bool")
    loss = run("where", (counted, losses, zero))

    scale = run("where", (counted, upstream, zero))
    relative = run("exp", (run("sub", (largest, greatest, 1)),))
    probability = run("div", (changed.one("relative", relative, greatest), total))
    probabilities = run("mul", (powers, run("unsqueeze", (run("mul", (scale, probability)), -1))))
    both = changed.one("target", run("bitwise_and", (inside, counted), dtype="bool"), inside)
    change = run("neg", (run("unsqueeze", (run("mul", (scale, both)), -1)),))
    gradient = run("scatter_add", (probabilities, -1, ids, change))
    return program, loss.value, gradient.value


@pytest.mark.parametrize("seed", range(8))
def test_the_loss_and_its_gradient_are_those_of_the_whole_logits(seed: int) -> None:
    program, *results = written(seed, Changed())
    lifter, terms = program.lifter(), Values(program.leaves)
    for value in results:
        found = lifter.lift((value,) * program.ranks)
        assert isinstance(found, Lifted), found
        assert not program.wrong((value,) * program.ranks, found, terms)


CHANGES = ("bound", "factor", "mask", "gather", "rescaling", "logarithm", "relative", "target")


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_program_is_claimed_to_be_no_loss(what: str) -> None:
    program, *results = written(1, Changed(what))
    lifter, terms = program.lifter(), Values(program.leaves)
    found = [lifter.lift((value,) * program.ranks) for value in results]
    assert not all(isinstance(one, Lifted) for one in found)
    for value, one in zip(results, found, strict=True):
        if isinstance(one, Lifted):
            assert not program.wrong((value,) * program.ranks, one, terms)
