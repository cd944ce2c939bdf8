"""Section 6, item 7: nothing in the model bounds sizes, worlds or the number of groups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

import z3
from tpinit.proofs.claims import Claim, Mutant, theorem
from tpinit.proofs.mutants import override
from tpinit.spec.model import SIZE_OF, GroupSort, Model, Symbols
from tpinit.spec.vocabulary import ViolationCode


def _no_size_above(limit: int) -> Mutant:
    return override(
        ViolationCode.SIZE_INVALID,
        f"also above {limit}",
        lambda m, right: z3.Or(right, z3.And(m.effective_size.exists, m.effective_size.value > limit)),
    )


@theorem("6.7", control=_no_size_above(2**64))
def sizes_and_worlds_are_unbounded(m: Model) -> Iterable[Claim]:
    """Sizes and worlds have no upper bound: for every integer, AutoTP starts with a size above it in a world of
    that size, with a created group (row 3) and with the call's own group (row 9).
    """
    bound = z3.Int("bound")
    s = m.given_input
    nothing = {item.name: z3.BoolVal(False) for item in fields(Symbols) if str(item.type) == "z3.BoolRef"}
    true = z3.BoolVal(True)
    row_3 = replace(s, **nothing | {"section": true, "autotp_given": true}, autotp=bound + 1, world=bound + 1)
    row_9 = replace(s, **nothing | {"tpi": true, "tpg": true}, call_size=bound + 1, world=bound + 1)
    positive = z3.And(bound >= 1, *(SIZE_OF(group) >= 1 for group in (s.call_group, s.cgroup, s.mpu_group)))
    created, brought = replace(m, given_input=row_3), replace(m, given_input=row_9)
    no_brute_force = "the claim is about every integer bound"
    yield Claim("row 3", positive, z3.And(created.row_number == 3, created.starts), no_brute_force=no_brute_force)
    fits = z3.And(positive, SIZE_OF(s.call_group) == bound + 1)
    yield Claim("row 9", fits, z3.And(brought.row_number == 9, brought.starts), no_brute_force=no_brute_force)


@theorem(
    "6.7",
    control=override(
        ViolationCode.GROUP_IDENTITY_MISMATCH,
        "only among three groups",
        lambda m, right: z3.And(
            right,
            z3.Or(
                m.given_input.cgroup == m.given_input.mpu_group,
                m.given_input.cgroup == m.given_input.mesh_group,
                m.given_input.mpu_group == m.given_input.mesh_group,
            ),
        ),
    ),
)
def groups_are_uninterpreted(m: Model) -> Iterable[Claim]:
    """Groups are an uninterpreted sort: different groups of any sizes can be supplied, and when the config, the
    mpu and the mesh supply three different groups, GROUP_IDENTITY_MISMATCH holds.
    """
    s = m.given_input
    terms = (s.call_group, s.cgroup, s.mpu_group, s.mesh_group)
    sorts = all(term.sort() == GroupSort for term in terms) and GroupSort.kind() == z3.Z3_UNINTERPRETED_SORT
    yield Claim("uninterpreted", z3.BoolVal(True), z3.BoolVal(sorts))
    supplied = z3.And(m.well_typed, m.cfg, s.cgroup_given, s.mpu, s.mesh)
    different = z3.Distinct(s.cgroup, s.mpu_group, s.mesh_group)
    bound = z3.Int("bound")
    large = z3.And(*(SIZE_OF(term) > bound for term in terms), bound > 2**64)
    yield Claim(
        "different and large",
        supplied,
        z3.And(different, large),
        possible=True,
        no_brute_force="the claim needs three large groups",
    )
    mismatch = m.violation(ViolationCode.GROUP_IDENTITY_MISMATCH)
    no_brute_force = "the claim needs three different groups"
    yield Claim("mismatch", z3.And(supplied, different), mismatch, shown=(s,), no_brute_force=no_brute_force)
