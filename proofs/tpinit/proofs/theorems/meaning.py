"""Section 6, items 3 and 6: the merge and section 4, written a second time, are those of the model, for every input.

`tpinit.spec.meaning` shares only the vocabulary and the symbols of an input with `tpinit.spec.model`. A slip in one of
them, even one that the resolver has too, makes the two differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType

import z3
from tpinit.proofs.claims import Claim, theorem
from tpinit.proofs.mutants import override, reorder_dtypes
from tpinit.spec import meaning
from tpinit.spec.model import DTYPES, GROUPS, SIZES, FieldTerm, Model, constant
from tpinit.spec.vocabulary import Outcome, Source, ViolationCode

__all__ = ["merges_agree", "violations_agree"]


@theorem("6.3", control=reorder_dtypes(Source.CONFIG_DTYPE, Source.CALL_DTYPE, Source.PRECISION))
def two_merges_agree(m: Model) -> Iterable[Claim]:
    """Two merges that were written separately agree for every input: whether the section counts (D2), and for size and
    dtype whether there is a value, the value, and its source; for the group where the row is not an error. Each source
    is the named one for some success.
    """
    yield from merges_agree(m, meaning)


def merges_agree(m: Model, second: ModuleType) -> Iterable[Claim]:
    """Yield the claims that the merge of a model is the one in `second`, which is `tpinit.spec.meaning` or a copy."""
    s = m.given_input
    yield Claim("CFG", m.well_typed, m.cfg == second.section_counts(s), shown=(s,))
    yield Claim("disabled", m.well_typed, m.disabled == z3.And(s.section, z3.Not(second.section_counts(s))), shown=(s,))
    yield Claim("in scope", m.well_typed, m.in_scope == second.autotp_wanted(s), shown=(s,))
    not_rejected = z3.And(m.well_typed, m.by_table.outcome != constant(Outcome.ERROR))
    fields = (
        ("size", m.effective_size, second.merged_size(s), SIZES, m.well_typed),
        ("dtype", m.effective_dtype, second.merged_dtype(s), (*DTYPES, Source.UNSET), m.well_typed),
        ("group", m.effective_group, second.merged_group(s), (*GROUPS, Source.CREATED), not_rejected),
    )
    for name, mine, theirs, sources, given in fields:
        yield Claim(f"{name} exists", given, mine.exists == theirs.exists, shown=(s,))
        yield Claim(name, z3.And(given, theirs.exists), mine.value == theirs.value, shown=(s,))
        named = {source: z3.And(theirs.has_source, theirs.source == constant(source)) for source in sources}
        same = (_comes(mine, source) == names for source, names in named.items())
        yield Claim(f"source of {name}", given, z3.And(*same), shown=(s,))
        for source, names in named.items():
            yield Claim(f"some {name} from {source.value}", m.well_typed, z3.And(m.starts, names), possible=True)


def _comes(term: FieldTerm, source: Source) -> z3.BoolRef:
    return term.comes_from.get(source, z3.BoolVal(False))


@theorem(
    "6.6",
    control=override(
        ViolationCode.GROUP_SIZE_MISMATCH,
        "compares with the size of the call where there is one",
        lambda m, right: z3.And(
            right, z3.Or(z3.Not(m.given_input.mesh), m.effective_size.value == m.given_input.call_size)
        ),
    ),
)
def two_sets_of_violations_agree(m: Model) -> Iterable[Claim]:
    """The ten violations of section 4, written a second time as sentences over the raw input, hold for exactly the same
    inputs as those of the model, and so do the error and the start of AutoTP. In the second set, too, each of the ten
    can hold while no other does.
    """
    yield from violations_agree(m, meaning)


def violations_agree(m: Model, second: ModuleType) -> Iterable[Claim]:
    """Yield the claims that the violations of a model are those in `second`."""
    s = m.given_input
    broken = {code: second.BROKEN[code](s) for code in ViolationCode}
    for code, holds in broken.items():
        yield Claim(code.value, m.well_typed, m.violation(code) == holds, shown=(s,))
        others = (z3.Not(other) for one, other in broken.items() if one is not code)
        yield Claim(f"{code.value} alone", m.well_typed, z3.And(holds, *others), possible=True)
    error = z3.Or(*broken.values())
    yield Claim("error", m.well_typed, m.error == error, shown=(s,))
    starts = z3.And(second.autotp_wanted(s), z3.Not(error))
    yield Claim("starts", m.well_typed, m.starts == starts, shown=(s,))
