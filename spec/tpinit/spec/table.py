"""Formulation 1: the twelve rows of the contract's table, as data (section 2).

Imports the vocabulary and nothing else; in particular not the prose, to which it is proven equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tpinit.spec.vocabulary import Fact, FieldsFrom, GroupFrom, Outcome, Source, ViolationCode

__all__ = ["COLUMN", "ROWS", "FieldSources", "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row: the four facts, and the result for them. `code` is set where the outcome is an error."""

    number: int
    tpi: bool
    tpg: bool
    cfg: bool
    mpu: bool
    outcome: Outcome
    code: ViolationCode | None
    fields_from: FieldsFrom
    group_from: GroupFrom

    @property
    def facts(self) -> tuple[tuple[Fact, bool], ...]:
        """The row's condition on each of the four facts, in the order of the columns."""
        return (Fact.TPI, self.tpi), (Fact.TPG, self.tpg), (Fact.CFG, self.cfg), (Fact.MPU, self.mpu)


@dataclass(frozen=True, slots=True)
class FieldSources:
    """Where size and dtype come from: the first source that is given. A dtype without any is unset (D6)."""

    size: tuple[Source, ...]
    dtype: tuple[Source, ...]


def _row(number: int, facts: str, outcome: Outcome | ViolationCode, fields: FieldsFrom, group: GroupFrom) -> Row:
    tpi, tpg, cfg, mpu = (letter == "Y" for letter in facts.split())
    if isinstance(outcome, ViolationCode):
        return Row(number, tpi, tpg, cfg, mpu, Outcome.ERROR, outcome, fields, group)
    return Row(number, tpi, tpg, cfg, mpu, outcome, None, fields, group)


_O, _C, _F, _G = Outcome, ViolationCode, FieldsFrom, GroupFrom

#                TPI TPG CFG MPU
ROWS: tuple[Row, ...] = (
    _row(1, "N N N N", _C.NO_TP_INTENT, _F.NOTHING, _G.NOTHING),
    _row(2, "N N N Y", _O.NO_AUTOTP, _F.NOTHING, _G.NOTHING),
    _row(3, "N N Y N", _O.INIT_FROM_CONFIG, _F.CONFIG, _G.CONFIG),
    _row(4, "N N Y Y", _O.INIT_FROM_CONFIG, _F.CONFIG, _G.MPU),
    _row(5, "Y N N N", _C.NO_GROUP_SOURCE, _F.NOTHING, _G.NOTHING),
    _row(6, "Y N N Y", _O.INIT_FROM_CALL, _F.CALL, _G.MPU),
    _row(7, "Y N Y N", _O.INIT_FROM_CONFIG, _F.CONFIG_THEN_CALL, _G.CONFIG),
    _row(8, "Y N Y Y", _O.INIT_FROM_CONFIG, _F.CONFIG_THEN_CALL, _G.MPU),
    _row(9, "Y Y N N", _O.INIT_FROM_CALL, _F.CALL, _G.CALL),
    _row(10, "Y Y N Y", _C.GROUP_AND_MPU, _F.NOTHING, _G.NOTHING),
    _row(11, "Y Y Y N", _O.INIT_FROM_CONFIG, _F.CONFIG_THEN_CALL, _G.CALL),
    _row(12, "Y Y Y Y", _C.GROUP_AND_MPU, _F.NOTHING, _G.NOTHING),
)

# What each word of the column `size and dtype from` means. The precision stands outside of the section, so it counts in
# every row: in rows 6 and 9 it is named as the source of a dtype that must be the call's (P3), in row 2 it is alone.
_AUTOTP, _ALIAS, _CALL = Source.CONFIG_AUTOTP_SIZE, Source.CONFIG_TP_SIZE, Source.CALL_TP_SIZE
_DTYPE, _PRECISION, _CALL_DTYPE = Source.CONFIG_DTYPE, Source.PRECISION, Source.CALL_DTYPE
COLUMN: Mapping[FieldsFrom, FieldSources] = MappingProxyType(
    {
        _F.NOTHING: FieldSources((), (_PRECISION,)),
        _F.CONFIG: FieldSources((_AUTOTP, _ALIAS), (_DTYPE, _PRECISION)),
        _F.CALL: FieldSources((_CALL,), (_PRECISION, _CALL_DTYPE)),
        _F.CONFIG_THEN_CALL: FieldSources((_AUTOTP, _ALIAS, _CALL), (_DTYPE, _PRECISION, _CALL_DTYPE)),
    }
)
