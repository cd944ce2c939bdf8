"""The resolver against the oracle on every single input of a small domain."""

from tpinit.conformance.domain import EVERY_FEATURE, GROUP_PAIRS, Shape, cases, features, shape
from tpinit.conformance.oracle import ROWS, comparable, oracle
from tpinit.reference.resolver import resolve
from tpinit.spec.vocabulary import Outcome

LEAST = 300_000


def expected_count() -> int:
    """The size of the domain from the lengths of its axes, counted apart from the enumeration.

    A pair of groups contributes every input over {none, first, second} in four places; the second pair
    only those in which its second group occurs, since the others were there with the first pair.
    """
    dtypes_and_sizes_of_calls, of_sections, precisions, worlds = 3 * 2, 5 * 4 * 3, 2, 3

    def over(choices: int) -> int:
        """Inputs whose four places for a group have so many choices each (none among them)."""
        calls = 1 + dtypes_and_sizes_of_calls * choices
        sections = 1 + of_sections * choices
        return calls * sections * choices * choices * precisions * worlds

    return over(3) + (len(GROUP_PAIRS) - 1) * (over(3) - over(2))


def test_resolver_equals_oracle_on_the_full_product() -> None:
    count = 0
    shapes: set[Shape] = set()
    for inputs in cases():
        verdict = oracle(inputs)
        # Asserted only where it fails: pytest's rewriting of half a million asserts costs seconds.
        if comparable(resolve(inputs)) != verdict:
            raise AssertionError(f"{inputs}\nresolver: {resolve(inputs)}\noracle:   {verdict}")
        shapes.add(shape(verdict))
        count += 1
    assert count == expected_count()
    assert count >= LEAST
    assert features(shapes) == EVERY_FEATURE

    # The table of section 2 and the violations and definitions of section 4 tell one story.
    for row, codes, size_from, dtype_from, group_from, _ in shapes:
        line = ROWS[row - 1]
        if line.outcome is Outcome.ERROR:
            assert line.code in codes
        else:
            assert not {code for code in codes if any(code is other.code for other in ROWS)}
        if codes or line.outcome is Outcome.NO_AUTOTP:
            assert size_from is None
            assert group_from is None
        elif line.fields_from == "config":
            assert size_from is not None
            assert size_from.value.startswith("config.")
        elif line.fields_from == "call":
            assert size_from is not None
            assert size_from.value == "call.tp_size"
            assert dtype_from is not None
            assert dtype_from.value in {"call.dtype", "precision"}


def test_no_case_occurs_twice() -> None:
    one_in_some = [inputs for index, inputs in enumerate(cases()) if index % 7 == 0]
    assert len(set(one_in_some)) == len(one_in_some)
