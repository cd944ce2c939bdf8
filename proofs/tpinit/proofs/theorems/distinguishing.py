"""Theorems that mutation testing showed to be missing, such as: no consistent input is rejected.

Each states a sentence of section 2, 4 or 5 about the raw input, without the model's own definitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import z3
from tpinit.proofs.claims import Claim, theorem
from tpinit.proofs.mutants import override, redefine, reorder_groups
from tpinit.spec.model import SIZE_OF, FieldTerm, Model, constant
from tpinit.spec.vocabulary import DType, Outcome, Source, ViolationCode


def _cfg(m: Model) -> z3.BoolRef:
    """Return CFG, computed from the raw input (D1, D2)."""
    s = m.given_input
    off = z3.And(s.autotp_given, s.autotp == 0, z3.Not(s.alias_given), z3.Not(s.tpi))
    return z3.And(s.section, z3.Not(off))


def _sizes(m: Model) -> list[tuple[z3.BoolRef, z3.ArithRef]]:
    s, cfg = m.given_input, _cfg(m)
    return [(z3.And(cfg, s.autotp_given), s.autotp), (z3.And(cfg, s.alias_given), s.alias), (s.tpi, s.call_size)]


def _dtypes(m: Model) -> list[tuple[z3.BoolRef, z3.DatatypeRef]]:
    s, cfg = m.given_input, _cfg(m)
    return [(z3.And(cfg, s.dtype_given), s.dtype), (s.precision_given, s.precision), (s.tpi, s.call_dtype)]


def _groups(m: Model) -> list[tuple[z3.BoolRef, z3.ExprRef]]:
    s, cfg = m.given_input, _cfg(m)
    direct = [(s.tpg, s.call_group), (s.mpu, s.mpu_group)]
    return [*direct, (z3.And(cfg, s.cgroup_given), s.cgroup), (s.mesh, s.mesh_group)]


def _all_are(given: Sequence[tuple[z3.BoolRef, z3.ExprRef]], value: z3.ExprRef) -> z3.BoolRef:
    return z3.And(*(z3.Implies(exists, one == value) for exists, one in given))


def _some(given: Sequence[tuple[z3.BoolRef, z3.ExprRef]]) -> z3.BoolRef:
    return z3.Or(*(exists for exists, _ in given))


@theorem(
    "6.6",
    control=override(
        ViolationCode.SIZE_NOT_DIVIDING_WORLD,
        "holds also where a group is supplied",
        lambda m, _right: z3.And(
            m.cfg,
            m.effective_size.exists,
            m.effective_size.value >= 1,
            m.given_input.world % m.effective_size.value != 0,
        ),
    ),
)
def consistent_inputs_are_accepted(m: Model) -> Iterable[Claim]:
    """No consistent input is rejected. Let n be at least 1: if a size is given and every given size is n, all
    given dtypes are equal, all supplied groups are one group of n ranks, and n divides the world where no group
    is supplied, then AutoTP starts in every row that is not an error row, and no violation holds. With an mpu
    but neither a call nor a section, the outcome is `no AutoTP` for all field values.
    """
    s, cfg = m.given_input, _cfg(m)
    size, dtype, group = z3.Int("n"), z3.Const("d", s.dtype.sort()), z3.Const("g", s.cgroup.sort())
    groups = _groups(m)
    consistent = z3.And(
        m.well_typed,
        size >= 1,
        _some(_sizes(m)),
        _all_are(_sizes(m), size),
        _all_are(_dtypes(m), dtype),
        _all_are(groups, group),
        z3.Implies(_some(groups), SIZE_OF(group) == size),
        z3.Implies(z3.Not(_some(groups)), s.world % size == 0),
    )
    row = z3.Or(z3.And(cfg, z3.Not(z3.And(s.tpg, s.mpu))), z3.And(s.tpi, s.tpg != s.mpu))
    no_brute_force = "n, the dtype d and the group g are arbitrary"
    yield Claim("starts", z3.And(consistent, row), m.starts, shown=(s,), no_brute_force=no_brute_force)
    for code in ViolationCode:
        yield Claim(
            code.value, z3.And(consistent, row), z3.Not(m.violation(code)), shown=(s,), no_brute_force=no_brute_force
        )
    only_mpu = z3.And(m.well_typed, z3.Not(s.tpi), z3.Not(cfg), s.mpu)
    no_autotp = z3.And(m.outcome == constant(Outcome.NO_AUTOTP), z3.Not(m.starts))
    yield Claim("an mpu alone", only_mpu, no_autotp, shown=(s,))


@theorem(
    "6.6",
    control=override(
        ViolationCode.SIZE_INVALID,
        "holds also for `autotp_size: 0`, which D2 excepts",
        lambda m, right: z3.Or(right, z3.And(m.given(Source.CONFIG_AUTOTP_SIZE), m.given_input.autotp == 0)),
    ),
)
def a_violation_holds_for_its_own_reason(m: Model) -> Iterable[Claim]:
    """Neither the table nor P3 decides SIZE_MISSING, SIZE_INVALID and SIZE_NOT_DIVIDING_WORLD; each holds exactly
    for its own reason, whatever else is wrong. SIZE_MISSING: CFG holds, and neither the section nor a call gives
    a size. SIZE_INVALID: a call's size or `tp.tp_size` is below 1, or `autotp_size` is below 0, so never for the
    0 of D2. SIZE_NOT_DIVIDING_WORLD: CFG holds, no group is supplied, and the effective size is at least 1 and
    does not divide the world.
    """
    s, cfg, shown = m.given_input, _cfg(m), (m.given_input,)
    missing, invalid = m.violation(ViolationCode.SIZE_MISSING), m.violation(ViolationCode.SIZE_INVALID)
    undivided = m.violation(ViolationCode.SIZE_NOT_DIVIDING_WORLD)
    yield Claim("missing", m.well_typed, missing == z3.And(cfg, z3.Not(_some(_sizes(m)))), shown=shown)
    (autotp_given, autotp), (alias_given, alias), (_, call_size) = _sizes(m)
    below = z3.Or(z3.And(s.tpi, call_size < 1), z3.And(alias_given, alias < 1), z3.And(autotp_given, autotp < 0))
    yield Claim("invalid", m.well_typed, invalid == below, shown=shown)
    to_create = z3.And(m.well_typed, cfg, z3.Not(_some(_groups(m))), _some(_sizes(m)))
    yield Claim("only where a group is to be created", z3.And(m.well_typed, undivided), to_create, shown=shown)
    effective = z3.If(autotp_given, autotp, z3.If(alias_given, alias, call_size))
    not_dividing = z3.And(effective >= 1, s.world % effective != 0)
    yield Claim("where the size does not divide the world", to_create, undivided == not_dividing, shown=shown)


@theorem(
    "6.6",
    control=override(
        ViolationCode.SIZE_MISMATCH,
        "never holds for `autotp_size: 0`",
        lambda m, right: z3.And(right, z3.Not(z3.And(m.given(Source.CONFIG_AUTOTP_SIZE), m.given_input.autotp == 0))),
    ),
)
def zero_is_a_size_like_any_other(m: Model) -> Iterable[Claim]:
    """D2: an `autotp_size` of 0 beside a call or `tp.tp_size` is a given size. It differs from every valid
    size, so SIZE_MISMATCH holds; SIZE_INVALID never holds because of it.
    """
    s = m.given_input
    zero = z3.And(m.well_typed, s.section, s.autotp_given, s.autotp == 0)
    for says, other in (
        ("a call", z3.And(s.tpi, s.call_size >= 1)),
        ("the alias", z3.And(s.alias_given, s.alias >= 1)),
    ):
        mismatch = m.violation(ViolationCode.SIZE_MISMATCH)
        yield Claim(f"beside {says}", z3.And(zero, other), z3.And(mismatch, m.error), shown=(s,))
    valid = z3.And(z3.Implies(s.tpi, s.call_size >= 1), z3.Implies(s.alias_given, s.alias >= 1))
    never = z3.Not(m.violation(ViolationCode.SIZE_INVALID))
    yield Claim("never invalid itself", z3.And(zero, valid), never, shown=(s,))


@theorem(
    "6.6",
    control=redefine(
        "error",
        "holds only where the sizes are valid",
        lambda m, right: z3.And(right, z3.Not(m.violation(ViolationCode.SIZE_INVALID))),
    ),
)
def every_violation_refuses(m: Model) -> Iterable[Claim]:
    """Each violation alone makes the outcome an error, and AutoTP does not start; every error has at least one of
    the ten violations; without a violation AutoTP starts exactly when the outcome is an initialisation.
    """
    holding = [m.violation(code) for code in ViolationCode]
    refused = z3.And(m.outcome == constant(Outcome.ERROR), z3.Not(m.starts))
    for code, holds in zip(ViolationCode, holding, strict=True):
        yield Claim(code.value, z3.And(m.well_typed, holds), refused, shown=(m.given_input,))
    error = z3.And(m.well_typed, m.outcome == constant(Outcome.ERROR))
    yield Claim("no error without one", error, z3.Or(*holding), shown=(m.given_input,))
    started = z3.And(m.well_typed, z3.Not(z3.Or(*holding)))
    initialises = z3.Or(*(m.outcome == constant(one) for one in (Outcome.INIT_FROM_CONFIG, Outcome.INIT_FROM_CALL)))
    yield Claim("starts where the outcome says so", started, m.starts == initialises, shown=(m.given_input,))


@theorem("6.3", control=reorder_groups(Source.MESH_TP_GROUP, Source.CONFIG_TP_GROUP))
def the_configs_group_comes_before_the_meshs(m: Model) -> Iterable[Claim]:
    """Rows 3 and 7 take the config's group, else the mesh's: where both supply the same group, the config is
    named as its source (P1).
    """
    s = m.given_input
    started = z3.And(m.well_typed, m.starts, z3.Not(s.tpg), z3.Not(s.mpu))
    comes = m.effective_group.comes_from
    of_config = z3.And(started, s.cgroup_given)
    yield Claim("config", of_config, comes.get(Source.CONFIG_TP_GROUP, z3.BoolVal(False)), shown=(s,))
    of_mesh = z3.And(started, z3.Not(s.cgroup_given), s.mesh)
    yield Claim("mesh", of_mesh, comes.get(Source.MESH_TP_GROUP, z3.BoolVal(False)), shown=(s,))


@theorem(
    "6.3",
    control=redefine(
        "effective_dtype",
        "is fp32 where no dtype is given",
        lambda _m, right: FieldTerm(
            z3.BoolVal(True), z3.If(right.exists, right.value, constant(DType.FP32)), right.comes_from
        ),
    ),
)
def a_dtype_that_nobody_gives_stays_unset(m: Model) -> Iterable[Claim]:
    """D6: on success there is an effective dtype exactly when the section, the precision or the call gives one;
    otherwise its source is `unset`, and no default dtype replaces it.
    """
    dtype = m.effective_dtype
    success = z3.And(m.well_typed, z3.Not(m.error))
    given = _some(_dtypes(m))
    yield Claim("exists", success, dtype.exists == given, shown=(m.given_input,))
    yield Claim("unset", success, dtype.comes_from[Source.UNSET] == z3.Not(given), shown=(m.given_input,))
