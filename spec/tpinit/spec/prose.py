"""Formulation 2: the prose P1-P7 as guarded rules (section 3).

A rule fires when every fact in its guard has the stated truth. Rules overlap on purpose, as sentences
do: the result combines all rules that fire, and a rejection overrides the others. Imports the
vocabulary and nothing else; in particular not the table, to which it is proven equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tpinit.spec.vocabulary import Fact, GroupFrom, Outcome, Source, ViolationCode

__all__ = ["DISAGREEMENTS", "RULES", "Disagreement", "Rule"]

_TPI, _TPG, _CFG, _MPU = Fact


@dataclass(frozen=True, slots=True)
class Rule:
    """One sentence: its guard, and what it contributes where the guard holds. None contributes nothing."""

    clause: str
    says: str
    when: Mapping[Fact, bool]
    outcome: Outcome | None = None
    reads_config: bool = False
    reads_call: bool = False
    group: GroupFrom | None = None
    rejects: ViolationCode | None = None


def _when(*holds: Fact, unless: tuple[Fact, ...] = ()) -> Mapping[Fact, bool]:
    return MappingProxyType(dict.fromkeys(holds, True) | dict.fromkeys(unless, False))


RULES: tuple[Rule, ...] = (
    Rule(
        "P1",
        "the config is the canonical source of every field",
        _when(_CFG),
        outcome=Outcome.INIT_FROM_CONFIG,
        reads_config=True,
    ),
    Rule("P2", "a field that the config lacks is filled from the call", _when(_TPI), reads_call=True),
    Rule(
        "P2",
        "where there is no config, every field is lacking and the call initialises",
        _when(_TPI, unless=(_CFG,)),
        outcome=Outcome.INIT_FROM_CALL,
    ),
    Rule("P4", "a call's tp_group is the group", _when(_TPG), group=GroupFrom.CALL),
    Rule("P4", "a call's tp_group rejects any mpu", _when(_TPG, _MPU), rejects=ViolationCode.GROUP_AND_MPU),
    Rule("P5", "without it, the mpu gives a call its group", _when(_TPI, _MPU, unless=(_TPG,)), group=GroupFrom.MPU),
    Rule("P5", "without it, the mpu gives a config its group", _when(_CFG, _MPU, unless=(_TPG,)), group=GroupFrom.MPU),
    Rule(
        "P5",
        "without both, a section has other group sources",
        _when(_CFG, unless=(_TPG, _MPU)),
        group=GroupFrom.CONFIG,
    ),
    Rule(
        "P6",
        "a call alone requires a direct source: its own tp_group or an mpu",
        _when(_TPI, unless=(_CFG, _TPG, _MPU)),
        rejects=ViolationCode.NO_GROUP_SOURCE,
    ),
    Rule(
        "P7",
        "without a call and without a section there is no AutoTP",
        _when(unless=(_TPI, _CFG)),
        outcome=Outcome.NO_AUTOTP,
    ),
    Rule(
        "P7",
        "an error when nothing at all was given",
        _when(unless=(_TPI, _CFG, _MPU)),
        rejects=ViolationCode.NO_TP_INTENT,
    ),
)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """P3 for one field: it is an error when two of these sources give different values.

    Where `groups` is not empty, the given sizes are compared with the sizes of those groups instead of with
    each other. The pair `except_pair` is exempt, because the clause `left_to` decides it. Where P7 gives no
    AutoTP, no difference is an error.
    """

    code: ViolationCode
    sources: tuple[Source, ...]
    groups: tuple[Source, ...] = ()
    except_pair: tuple[Source, Source] | None = None
    left_to: str = ""


_SIZES = (Source.CALL_TP_SIZE, Source.CONFIG_TP_SIZE, Source.CONFIG_AUTOTP_SIZE)
_GROUPS = (Source.MESH_TP_GROUP, Source.CONFIG_TP_GROUP, Source.MPU_TP_GROUP, Source.CALL_TP_GROUP)

DISAGREEMENTS: tuple[Disagreement, ...] = (
    Disagreement(ViolationCode.SIZE_MISMATCH, _SIZES),
    Disagreement(ViolationCode.DTYPE_MISMATCH, (Source.CALL_DTYPE, Source.PRECISION, Source.CONFIG_DTYPE)),
    Disagreement(
        ViolationCode.GROUP_IDENTITY_MISMATCH,
        _GROUPS,
        except_pair=(Source.MPU_TP_GROUP, Source.CALL_TP_GROUP),
        left_to="P4",
    ),
    Disagreement(ViolationCode.GROUP_SIZE_MISMATCH, _SIZES, groups=_GROUPS),
)
