"""The vocabulary that every formulation shares: inputs, decision, violation codes.

This module holds data types only and decides nothing. The table, the prose, the Z3 model, the resolver
and the brute-force oracle import it; none of them imports another one's answer, so each agreement between
two of them is evidence. Contract, sections 1, 2 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Generic, TypeAlias, TypeVar

__all__ = [
    "AnyGiven",
    "Call",
    "DType",
    "Decision",
    "Effective",
    "Fact",
    "FieldsFrom",
    "Given",
    "Group",
    "GroupFrom",
    "Inputs",
    "Mpu",
    "Outcome",
    "Section",
    "Source",
    "Violation",
    "ViolationCode",
]

T = TypeVar("T")


def _nothing() -> Mapping[str, object]:
    return MappingProxyType({})


class DType(str, Enum):
    """A floating-point type that parameters can have (D8)."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class Fact(str, Enum):
    """The four facts that pick a row (section 1)."""

    TPI = "TPI"
    TPG = "TPG"
    CFG = "CFG"
    MPU = "MPU"


class Outcome(str, Enum):
    """What `initialize` does (contract, section 2)."""

    ERROR = "error"
    NO_AUTOTP = "no_autotp"
    INIT_FROM_CONFIG = "init_from_config"
    INIT_FROM_CALL = "init_from_call"


class FieldsFrom(str, Enum):
    """Where size and dtype come from (a column of the table, section 2)."""

    NOTHING = "-"
    CONFIG = "config"
    CALL = "call"
    CONFIG_THEN_CALL = "config, gaps filled from the call"


class GroupFrom(str, Enum):
    """Where the TP group comes from (the table's last column)."""

    NOTHING = "-"
    CALL = "the call's tp_group"
    MPU = "mpu"
    CONFIG = "config group, mesh, or created"


class ViolationCode(str, Enum):
    """The ten violations, in the canonical order in which a decision lists them (section 4)."""

    NO_TP_INTENT = "NO_TP_INTENT"
    NO_GROUP_SOURCE = "NO_GROUP_SOURCE"
    GROUP_AND_MPU = "GROUP_AND_MPU"
    SIZE_MISSING = "SIZE_MISSING"
    SIZE_INVALID = "SIZE_INVALID"
    SIZE_MISMATCH = "SIZE_MISMATCH"
    DTYPE_MISMATCH = "DTYPE_MISMATCH"
    GROUP_IDENTITY_MISMATCH = "GROUP_IDENTITY_MISMATCH"
    GROUP_SIZE_MISMATCH = "GROUP_SIZE_MISMATCH"
    SIZE_NOT_DIVIDING_WORLD = "SIZE_NOT_DIVIDING_WORLD"


class Source(str, Enum):
    """Where a value comes from. Each member's value is the path under which users write it."""

    CALL_TP_SIZE = "call.tp_size"
    CALL_DTYPE = "call.dtype"
    CALL_TP_GROUP = "call.tp_group"
    CONFIG_AUTOTP_SIZE = "config.autotp_size"
    CONFIG_TP_SIZE = "config.tp.tp_size"
    CONFIG_DTYPE = "config.dtype"
    CONFIG_TP_GROUP = "config.tp.tp_group"
    PRECISION = "precision"
    MPU_TP_GROUP = "mpu.tp_group"
    MESH_TP_GROUP = "mesh.tp_group"
    WORLD_SIZE = "world_size"
    CREATED = "created"
    UNSET = "unset"


@dataclass(frozen=True, slots=True)
class Group:
    """A process group as the contract sees it: an identity and a size in ranks.

    Two groups are the same object exactly when their identities are equal. `handle` is the caller's own
    object (a torch process group, a tuple of ranks): the decision returns it, and the decision does not
    depend on it.
    """

    identity: int
    size: int
    handle: object = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    """One `tp_model_init` call: size in ranks, dtype, and the `tp_group` if one was given (TPG)."""

    tp_size: int
    dtype: DType
    tp_group: Group | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """The `tensor_parallel` section, present and not null (D1); a field that is None is absent (D3).

    `carried` holds the other keys: the runtime needs them, and the decision does not depend on them.
    """

    autotp_size: int | None = None
    tp_size: int | None = None
    dtype: DType | None = None
    tp_group: Group | None = None
    carried: Mapping[str, object] = field(default_factory=_nothing, hash=False)


@dataclass(frozen=True, slots=True)
class Mpu:
    """The mpu passed to `initialize`: its TP group and, if it has one, its DP group.

    The decision does not depend on `dp_group`; it passes it on to the runtime.
    """

    tp_group: Group
    dp_group: Group | None = None


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that the decision depends on, for one model (section 4). None means not given.

    A0 (TPG implies TPI) holds by construction: a `tp_group` is a field of a call. One group identity has
    one size, and a world has at least one rank.

    Raises ValueError for a world or a group without ranks, and for one identity given two sizes.
    """

    world_size: int
    call: Call | None = None
    section: Section | None = None
    precision: DType | None = None
    mpu: Mpu | None = None
    mesh: Group | None = None

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ValueError(f"world_size is {self.world_size}: a world has at least 1 rank")
        sizes: dict[int, int] = {}
        for group in (
            None if self.call is None else self.call.tp_group,
            None if self.section is None else self.section.tp_group,
            None if self.mpu is None else self.mpu.tp_group,
            self.mesh,
        ):
            if group is None:
                continue
            if group.size < 1:
                raise ValueError(f"group {group.identity} has size {group.size}: a group has at least 1 rank")
            if sizes.setdefault(group.identity, group.size) != group.size:
                raise ValueError(
                    f"group {group.identity} is given with sizes {sizes[group.identity]} and {group.size}: "
                    "one identity has one size"
                )


@dataclass(frozen=True, slots=True)
class Given(Generic[T]):
    """One given value and its source: the evidence of a violation."""

    source: Source
    value: T


AnyGiven: TypeAlias = "Given[int] | Given[DType] | Given[Group]"


@dataclass(frozen=True, slots=True)
class Violation:
    """A violation that holds, with the given values that cause it."""

    code: ViolationCode
    given: tuple[AnyGiven, ...] = ()


@dataclass(frozen=True, slots=True)
class Effective(Generic[T]):
    """An effective value and its source. Both are None where the decision has no such value.

    A dtype that was not given has the source `unset`; a group that the runtime will create has the source
    `created`. In both cases the value is None.
    """

    value: T | None = None
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What `initialize` will do, and why: the row (1-12), the outcome, and each field with its source.

    `violations` is in canonical order and not empty exactly when the outcome is an error; an error has
    no effective values. `section_disabled` is true when `autotp_size: 0` switched the section off (D2).
    `dp_group` and `carried` are passed through for the runtime; nothing else depends on them.
    """

    row: int
    outcome: Outcome
    tp_size: Effective[int] = Effective()
    dtype: Effective[DType] = Effective()
    tp_group: Effective[Group] = Effective()
    violations: tuple[Violation, ...] = ()
    section_disabled: bool = False
    world_size: int = 1
    dp_group: Group | None = None
    carried: Mapping[str, object] = field(default_factory=_nothing, hash=False)
