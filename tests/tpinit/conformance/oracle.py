"""The contract by brute force: a slow and literal second implementation that imports the vocabulary only.

It is deliberately simple. The table of section 2 is typed out and looked up, and each violation of section 4 is its
sentence written as a loop over every pair of given values. If it differs from a resolver, the contract decides which
of the two is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations

from tpinit.spec.vocabulary import Decision, DType, Effective, Group, Inputs, Outcome, Source, ViolationCode

__all__ = ["ROWS", "OracleRow", "ComparableDecision", "first_disagreement", "oracle", "comparable"]

# Contract, section 2, line by line:
#    row | TPI TPG CFG MPU | outcome | size and dtype from | TP group from
_TABLE = """
     1 | N N N N | error NO_TP_INTENT    | -                                  | -
     2 | N N N Y | no AutoTP             | -                                  | -
     3 | N N Y N | init from config      | config                             | config group, mesh, or created
     4 | N N Y Y | init from config      | config                             | mpu
     5 | Y N N N | error NO_GROUP_SOURCE | -                                  | -
     6 | Y N N Y | init from call        | call                               | mpu
     7 | Y N Y N | init from config      | config, gaps filled from the call  | config group, mesh, or created
     8 | Y N Y Y | init from config      | config, gaps filled from the call  | mpu
     9 | Y Y N N | init from call        | call                               | the call's tp_group
    10 | Y Y N Y | error GROUP_AND_MPU   | -                                  | -
    11 | Y Y Y N | init from config      | config, gaps filled from the call  | the call's tp_group
    12 | Y Y Y Y | error GROUP_AND_MPU   | -                                  | -
"""

_OUTCOMES = {
    "error": Outcome.ERROR,
    "no AutoTP": Outcome.NO_AUTOTP,
    "init from config": Outcome.INIT_FROM_CONFIG,
    "init from call": Outcome.INIT_FROM_CALL,
}


@dataclass(frozen=True, slots=True)
class OracleRow:
    """One line of the table in section 2; the last two columns keep the contract's words."""

    number: int
    tpi: bool
    tpg: bool
    cfg: bool
    mpu: bool
    outcome: Outcome
    code: ViolationCode | None
    fields_from: str
    group_from: str


@dataclass(frozen=True, slots=True)
class ComparableDecision:
    """The part of a decision on which two implementations must agree: all but evidence and carried settings.

    `codes` holds the violations in canonical order; a decision with violations has no effective values.
    """

    row: int
    outcome: Outcome
    tp_size: Effective[int]
    dtype: Effective[DType]
    tp_group: Effective[Group]
    codes: tuple[ViolationCode, ...]
    section_disabled: bool


def _parse(line: str) -> OracleRow:
    number, facts, outcome, fields_from, group_from = (cell.strip() for cell in line.split("|"))
    tpi, tpg, cfg, mpu = (letter == "Y" for letter in facts.split())
    code = None
    if outcome.startswith("error "):
        outcome, name = outcome.split()
        code = ViolationCode(name)
    return OracleRow(int(number), tpi, tpg, cfg, mpu, _OUTCOMES[outcome], code, fields_from, group_from)


ROWS: tuple[OracleRow, ...] = tuple(_parse(line) for line in _TABLE.strip().splitlines())
_ROW_OF = {(row.tpi, row.tpg, row.cfg, row.mpu): row for row in ROWS}
_NOTHING: Effective[int] = Effective()
_NO_DTYPE: Effective[DType] = Effective()
_NO_GROUP: Effective[Group] = Effective()


def oracle(inputs: Inputs) -> ComparableDecision:
    """Decide one input by the whole contract. Never raises for well-typed inputs."""
    call, section, mpu = inputs.call, inputs.section, inputs.mpu
    # D2: "With no call and no tp.tp_size it makes CFG false (the rest of the section is then ignored ...)".
    disabled = call is None and section is not None and section.autotp_size == 0 and section.tp_size is None
    if disabled:
        section = None
    facts = (call is not None, call is not None and call.tp_group is not None, section is not None, mpu is not None)
    row = _ROW_OF[facts]

    # In the order of section 4: the first given value is the effective one.
    sizes: list[tuple[Source, int]] = []
    dtypes: list[tuple[Source, DType]] = []
    groups: dict[Source, Group] = {}
    if section is not None:
        if section.autotp_size is not None:
            sizes.append((Source.CONFIG_AUTOTP_SIZE, section.autotp_size))
        if section.tp_size is not None:
            sizes.append((Source.CONFIG_TP_SIZE, section.tp_size))
        if section.dtype is not None:
            dtypes.append((Source.CONFIG_DTYPE, section.dtype))
        if section.tp_group is not None:
            groups[Source.CONFIG_TP_GROUP] = section.tp_group
    if inputs.precision is not None:
        dtypes.append((Source.PRECISION, inputs.precision))
    if call is not None:
        sizes.append((Source.CALL_TP_SIZE, call.tp_size))
        dtypes.append((Source.CALL_DTYPE, call.dtype))
        if call.tp_group is not None:
            groups[Source.CALL_TP_GROUP] = call.tp_group
    if mpu is not None:
        groups[Source.MPU_TP_GROUP] = mpu.tp_group
    if inputs.mesh is not None:
        groups[Source.MESH_TP_GROUP] = inputs.mesh

    codes = _codes(row, sizes, dtypes, groups, inputs.world_size)
    if codes:
        return ComparableDecision(row.number, Outcome.ERROR, _NOTHING, _NO_DTYPE, _NO_GROUP, codes, disabled)
    return ComparableDecision(
        row.number,
        row.outcome,
        Effective(sizes[0][1], sizes[0][0]) if sizes else _NOTHING,
        Effective(dtypes[0][1], dtypes[0][0]) if dtypes else Effective(None, Source.UNSET),
        _effective_group(row, groups),
        (),
        disabled,
    )


def _codes(
    row: OracleRow,
    sizes: list[tuple[Source, int]],
    dtypes: list[tuple[Source, DType]],
    groups: dict[Source, Group],
    world_size: int,
) -> tuple[ViolationCode, ...]:
    """Return the violations of section 4, whose sentences follow one by one in canonical order."""
    tpi, tpg, cfg, mpu = row.tpi, row.tpg, row.cfg, row.mpu
    in_scope = tpi or cfg
    effective_size = sizes[0][1] if sizes else None
    created = cfg and len(groups) == 0
    excepted = {Source.CALL_TP_GROUP, Source.MPU_TP_GROUP}
    holds = [
        (ViolationCode.NO_TP_INTENT, not tpi and not cfg and not mpu),
        (ViolationCode.NO_GROUP_SOURCE, tpi and not tpg and not cfg and not mpu),
        (ViolationCode.GROUP_AND_MPU, tpg and mpu),
        (ViolationCode.SIZE_MISSING, cfg and len(sizes) == 0),
        (
            ViolationCode.SIZE_INVALID,
            # D2: config.autotp_size 0 "is never SIZE_INVALID".
            in_scope and any(n < 1 and not (n == 0 and who == Source.CONFIG_AUTOTP_SIZE) for who, n in sizes),
        ),
        (ViolationCode.SIZE_MISMATCH, in_scope and any(a != b for (_, a), (_, b) in combinations(sizes, 2))),
        (ViolationCode.DTYPE_MISMATCH, in_scope and any(a != b for (_, a), (_, b) in combinations(dtypes, 2))),
        (
            ViolationCode.GROUP_IDENTITY_MISMATCH,
            in_scope
            and any(
                a.identity != b.identity and {who, whose} != excepted
                for (who, a), (whose, b) in combinations(groups.items(), 2)
            ),
        ),
        (
            ViolationCode.GROUP_SIZE_MISMATCH,
            in_scope and effective_size is not None and any(group.size != effective_size for group in groups.values()),
        ),
        (
            ViolationCode.SIZE_NOT_DIVIDING_WORLD,
            created and effective_size is not None and effective_size >= 1 and world_size % effective_size != 0,
        ),
    ]
    return tuple(code for code, it_holds in holds if it_holds)


def _effective_group(row: OracleRow, groups: dict[Source, Group]) -> Effective[Group]:
    """Return the TP group that the last column of the row names, read from left to right."""
    if row.group_from == "-":
        return _NO_GROUP
    if row.group_from == "mpu":
        return Effective(groups[Source.MPU_TP_GROUP], Source.MPU_TP_GROUP)
    if row.group_from == "the call's tp_group":
        return Effective(groups[Source.CALL_TP_GROUP], Source.CALL_TP_GROUP)
    for source in (Source.CONFIG_TP_GROUP, Source.MESH_TP_GROUP):
        if source in groups:
            return Effective(groups[source], source)
    return Effective(None, Source.CREATED)


def comparable(decision: Decision) -> ComparableDecision:
    """Return the part of a decision that is compared: all but its evidence and carried settings."""
    return ComparableDecision(
        decision.row,
        decision.outcome,
        decision.tp_size,
        decision.dtype,
        decision.tp_group,
        tuple(violation.code for violation in decision.violations),
        decision.section_disabled,
    )


def first_disagreement(implementation: Callable[[Inputs], Decision], cases: Iterable[Inputs]) -> Inputs | None:
    """Return the first case for which an implementation's decision differs from the oracle's, or None."""
    for inputs in cases:
        if comparable(implementation(inputs)) != oracle(inputs):
            return inputs
    return None
