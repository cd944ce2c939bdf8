"""Both formulations, the merge and all violations as Z3 terms.

Nothing here bounds worlds, sizes or numbers of groups (section 6, item 7). A `Model` reads its rows, rules,
precedence and predicates from its fields, so that a mutant is the same model with one field replaced. The
terms of an input come from `symbols` and can be imported from here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from types import MappingProxyType

import z3
from tpinit.spec.prose import DISAGREEMENTS, RULES, Disagreement, Rule
from tpinit.spec.symbols import SIZE_OF, GroupSort, Symbols, constant, fresh_symbols
from tpinit.spec.table import COLUMN, ROWS, FieldSources, Row
from tpinit.spec.vocabulary import Fact, FieldsFrom, GroupFrom, Outcome, Source, ViolationCode

__all__ = ["SIZE_OF", "FieldTerm", "GroupSort", "Model", "OutcomeTerms", "Symbols", "constant", "fresh_symbols"]

# For each source: the terms that are all true where it is given, the term of its value, and whether it is a field
# of the section, which exists only where CFG.
_GIVEN_AS: Mapping[Source, tuple[tuple[str, ...], str, bool]] = MappingProxyType(
    {
        Source.CALL_TP_SIZE: (("tpi",), "call_size", False),
        Source.CALL_DTYPE: (("tpi",), "call_dtype", False),
        Source.CALL_TP_GROUP: (("tpg",), "call_group", False),
        Source.CONFIG_AUTOTP_SIZE: (("section", "autotp_given"), "autotp", True),
        Source.CONFIG_TP_SIZE: (("section", "alias_given"), "alias", True),
        Source.CONFIG_DTYPE: (("section", "dtype_given"), "dtype", True),
        Source.CONFIG_TP_GROUP: (("section", "cgroup_given"), "cgroup", True),
        Source.PRECISION: (("precision_given",), "precision", False),
        Source.MPU_TP_GROUP: (("mpu",), "mpu_group", False),
        Source.MESH_TP_GROUP: (("mesh",), "mesh_group", False),
    }
)

SIZES = (Source.CONFIG_AUTOTP_SIZE, Source.CONFIG_TP_SIZE, Source.CALL_TP_SIZE)
DTYPES = (Source.CONFIG_DTYPE, Source.PRECISION, Source.CALL_DTYPE)
GROUPS = (Source.CALL_TP_GROUP, Source.MPU_TP_GROUP, Source.CONFIG_TP_GROUP, Source.MESH_TP_GROUP)


@dataclass(frozen=True)
class OutcomeTerms:
    """What one formulation decides from the four facts alone. `code` is meaningful where outcome is error."""

    outcome: z3.DatatypeRef
    code: z3.DatatypeRef
    fields_from: z3.DatatypeRef
    group_from: z3.DatatypeRef


@dataclass(frozen=True)
class FieldTerm:
    """An effective field: whether there is a value, the value, and whether each source is its source."""

    exists: z3.BoolRef
    value: z3.ExprRef
    comes_from: Mapping[Source, z3.BoolRef]


Predicate = Callable[["Model"], z3.BoolRef]


@dataclass(frozen=True)
class Model:
    """The contract over one symbolic input."""

    given_input: Symbols
    rows: tuple[Row, ...] = ROWS
    column: Mapping[FieldsFrom, FieldSources] = field(default_factory=lambda: COLUMN)
    rules: tuple[Rule, ...] = RULES
    disagreements: tuple[Disagreement, ...] = DISAGREEMENTS
    size_order: tuple[Source, ...] = SIZES
    dtype_order: tuple[Source, ...] = DTYPES
    config_group_order: tuple[Source, ...] = (Source.CONFIG_TP_GROUP, Source.MESH_TP_GROUP)
    disabled_by: Callable[[Symbols], z3.BoolRef] = field(default=lambda s: _disabled(s))
    predicates: Mapping[ViolationCode, Predicate] = field(default_factory=lambda: PREDICATES)

    # --- facts and what is given -------------------------------------------------------------------

    @cached_property
    def disabled(self) -> z3.BoolRef:
        """D2: the section is switched off by `autotp_size: 0`."""
        return z3.And(self.given_input.section, self.disabled_by(self.given_input))

    @cached_property
    def cfg(self) -> z3.BoolRef:
        """CFG (D1, D2)."""
        return z3.And(self.given_input.section, z3.Not(self.disabled_by(self.given_input)))

    @cached_property
    def in_scope(self) -> z3.BoolRef:
        """TPI or CFG."""
        return z3.Or(self.given_input.tpi, self.cfg)

    def fact(self, fact: Fact) -> z3.BoolRef:
        """One of the four facts."""
        s = self.given_input
        return {Fact.TPI: s.tpi, Fact.TPG: s.tpg, Fact.CFG: self.cfg, Fact.MPU: s.mpu}[fact]

    @cached_property
    def a0(self) -> z3.BoolRef:
        """A0: TPG implies TPI."""
        return z3.Implies(self.given_input.tpg, self.given_input.tpi)

    @cached_property
    def typing(self) -> Mapping[str, z3.BoolRef]:
        """The constraints that every well-typed input satisfies, by name."""
        s = self.given_input
        groups = (s.call_group, s.cgroup, s.mpu_group, s.mesh_group)
        return {
            "A0 (TPG implies TPI)": self.a0,
            "a world has at least one rank": s.world >= 1,
            "a group has at least one rank": z3.And(*(SIZE_OF(group) >= 1 for group in groups)),
        }

    @cached_property
    def well_typed(self) -> z3.BoolRef:
        """All of `typing`."""
        return z3.And(*self.typing.values())

    def given(self, source: Source) -> z3.BoolRef:
        """The source gives a value. The section's fields exist only when CFG."""
        names, _, in_section = _GIVEN_AS[source]
        present = z3.And(*(getattr(self.given_input, name) for name in names))
        return z3.And(self.cfg, present) if in_section else present

    def value(self, source: Source) -> z3.ExprRef:
        """The value from this source, meaningful where it is given."""
        term: z3.ExprRef = getattr(self.given_input, _GIVEN_AS[source][1])
        return term

    @cached_property
    def any_group(self) -> z3.BoolRef:
        """Some group is supplied."""
        return z3.Or(*(self.given(source) for source in GROUPS))

    @cached_property
    def created(self) -> z3.BoolRef:
        """A group is created: CFG and no group is supplied."""
        return z3.And(self.cfg, z3.Not(self.any_group))

    # --- formulation 1: the table ------------------------------------------------------------------

    def row_holds(self, row: Row) -> z3.BoolRef:
        """The row's condition on the four facts."""
        return z3.And(*(self.fact(fact) == truth for fact, truth in row.facts))

    @cached_property
    def row_number(self) -> z3.ArithRef:
        """The number of the row whose condition holds, 0 if there is none."""
        return _first([(self.row_holds(row), z3.IntVal(row.number)) for row in self.rows], z3.IntVal(0))

    @cached_property
    def by_table(self) -> OutcomeTerms:
        """What the table decides from the four facts."""

        def column(name: str, default: Enum) -> z3.DatatypeRef:
            cells = [(self.row_holds(row), constant(getattr(row, name) or default)) for row in self.rows]
            return _first(cells, constant(default))

        return OutcomeTerms(
            column("outcome", Outcome.ERROR),
            column("code", ViolationCode.NO_TP_INTENT),
            column("fields_from", FieldsFrom.NOTHING),
            column("group_from", GroupFrom.NOTHING),
        )

    def column_takes(self, what: FieldsFrom, source: Source) -> z3.BoolRef:
        """What a word of the column `size and dtype from` says: the field of this source is taken from it."""
        size, dtype = self.column[what].size, self.column[what].dtype
        if source is Source.UNSET:
            return z3.And(*(z3.Not(self.given(one)) for one in dtype))
        order = size if source in SIZES else dtype
        if source not in order:
            return z3.BoolVal(False)
        return z3.And(self.given(source), *(z3.Not(self.given(one)) for one in order[: order.index(source)]))

    # --- formulation 2: the prose ------------------------------------------------------------------

    def rule_fires(self, rule: Rule) -> z3.BoolRef:
        """The rule's guard."""
        return z3.And(*(self.fact(fact) == truth for fact, truth in rule.when.items()))

    def fires(self, which: Callable[[Rule], object]) -> z3.BoolRef:
        """Some rule for which `which` is true fires."""
        return z3.Or(*(self.rule_fires(rule) for rule in self.rules if which(rule)))

    @cached_property
    def by_prose(self) -> OutcomeTerms:
        """What the rules together decide from the four facts."""
        rejected = self.fires(lambda rule: rule.rejects)
        config, call = self.fires(lambda rule: rule.reads_config), self.fires(lambda rule: rule.reads_call)
        firing = [(self.rule_fires(rule), rule) for rule in self.rules]
        sources = z3.If(
            config,
            z3.If(call, constant(FieldsFrom.CONFIG_THEN_CALL), constant(FieldsFrom.CONFIG)),
            z3.If(call, constant(FieldsFrom.CALL), constant(FieldsFrom.NOTHING)),
        )
        outcome = _first([(g, constant(r.outcome)) for g, r in firing if r.outcome], constant(Outcome.ERROR))
        code = _first([(g, constant(r.rejects)) for g, r in firing if r.rejects], constant(ViolationCode.NO_TP_INTENT))
        group = _first([(g, constant(r.group)) for g, r in firing if r.group], constant(GroupFrom.NOTHING))
        return OutcomeTerms(
            z3.If(rejected, constant(Outcome.ERROR), outcome),
            code,
            z3.If(rejected, constant(FieldsFrom.NOTHING), sources),
            z3.If(rejected, constant(GroupFrom.NOTHING), group),
        )

    def disagree(self, what: Disagreement) -> z3.BoolRef:
        """P3 for one field: two given values differ, and P7 does not give "no AutoTP"."""
        no_autotp = self.fires(lambda rule: rule.outcome is Outcome.NO_AUTOTP)
        if what.groups:
            pairs = [(size, group) for size in what.sources for group in what.groups]
            differ = [z3.And(self.given(s), self.given(g), self.value(s) != SIZE_OF(self.value(g))) for s, g in pairs]
        else:
            differ = [
                z3.And(self.given(one), self.given(other), self.value(one) != self.value(other))
                for index, one in enumerate(what.sources)
                for other in what.sources[index + 1 :]
                if (one, other) != what.except_pair
            ]
        return z3.And(z3.Not(no_autotp), z3.Or(*differ))

    # --- merge and violations (section 4) ----------------------------------------------------------

    @cached_property
    def effective_size(self) -> FieldTerm:
        """The effective size (P1, P2, D5)."""
        return self._first_given(self.size_order)

    @cached_property
    def effective_dtype(self) -> FieldTerm:
        """The effective dtype; where it does not exist, it is unset (D6)."""
        return self._first_given(self.dtype_order, otherwise=Source.UNSET)

    @cached_property
    def effective_group(self) -> FieldTerm:
        """The TP group, from the source that the table's last column names."""
        wanted = self.by_table.group_from
        config = self._first_given(self.config_group_order, otherwise=Source.CREATED)
        comes_from = {source: z3.BoolVal(False) for source in GROUPS}
        comes_from |= {
            source: z3.And(wanted == constant(GroupFrom.CONFIG), term) for source, term in config.comes_from.items()
        }
        comes_from[Source.CALL_TP_GROUP] = wanted == constant(GroupFrom.CALL)
        comes_from[Source.MPU_TP_GROUP] = wanted == constant(GroupFrom.MPU)
        value = _first([(comes_from[source], self.value(source)) for source in GROUPS], self.value(GROUPS[0]))
        exists = z3.Or(*(comes_from[source] for source in GROUPS))
        return FieldTerm(exists, value, MappingProxyType(comes_from))

    def violation(self, code: ViolationCode) -> z3.BoolRef:
        """The predicate of one violation code (section 4)."""
        return self.predicates[code](self)

    @cached_property
    def error(self) -> z3.BoolRef:
        """At least one violation holds."""
        return z3.Or(*(self.violation(code) for code in ViolationCode))

    @cached_property
    def outcome(self) -> z3.DatatypeRef:
        """The outcome: the table's, unless a violation turns it into an error."""
        return z3.If(self.error, constant(Outcome.ERROR), self.by_table.outcome)

    @cached_property
    def starts(self) -> z3.BoolRef:
        """AutoTP is initialised: the table says so and no violation holds."""
        initialises = (Outcome.INIT_FROM_CONFIG, Outcome.INIT_FROM_CALL)
        by_row = z3.Or(*(self.by_table.outcome == constant(outcome) for outcome in initialises))
        return z3.And(*(z3.Not(self.violation(code)) for code in ViolationCode), by_row)

    def _first_given(self, order: Sequence[Source], otherwise: Source | None = None) -> FieldTerm:
        earlier_absent: list[z3.BoolRef] = []
        comes_from: dict[Source, z3.BoolRef] = {}
        for source in order:
            comes_from[source] = z3.And(*earlier_absent, self.given(source))
            earlier_absent.append(z3.Not(self.given(source)))
        exists = z3.Or(*(self.given(source) for source in order))
        if otherwise is not None:
            comes_from[otherwise] = z3.Not(exists)
        value = _first([(self.given(source), self.value(source)) for source in order], self.value(order[-1]))
        return FieldTerm(exists, value, MappingProxyType(comes_from))


def _first(cases: Sequence[tuple[z3.BoolRef, z3.ExprRef]], otherwise: z3.ExprRef) -> z3.ExprRef:
    """The value of the first case that holds."""
    term = otherwise
    for condition, value in reversed(cases):
        term = z3.If(condition, value, term)
    return term


def _disabled(s: Symbols) -> z3.BoolRef:
    return z3.And(s.autotp_given, s.autotp == 0, z3.Not(s.tpi), z3.Not(s.alias_given))


# --- the predicates of section 4 ---------------------------------------------------------------------


def _two_differ(model: Model, sources: Sequence[Source], but: tuple[Source, ...] = ()) -> z3.BoolRef:
    return z3.Or(
        *(
            z3.And(model.given(one), model.given(other), model.value(one) != model.value(other))
            for index, one in enumerate(sources)
            for other in sources[index + 1 :]
            if (one, other) != but
        )
    )


def _no_tp_intent(m: Model) -> z3.BoolRef:
    return z3.And(z3.Not(m.given_input.tpi), z3.Not(m.cfg), z3.Not(m.given_input.mpu))


def _no_group_source(m: Model) -> z3.BoolRef:
    s = m.given_input
    return z3.And(s.tpi, z3.Not(s.tpg), z3.Not(m.cfg), z3.Not(s.mpu))


def _group_and_mpu(m: Model) -> z3.BoolRef:
    return z3.And(m.given_input.tpg, m.given_input.mpu)


def _size_missing(m: Model) -> z3.BoolRef:
    return z3.And(m.cfg, *(z3.Not(m.given(source)) for source in SIZES))


def _size_invalid(m: Model) -> z3.BoolRef:
    def invalid(source: Source) -> z3.BoolRef:
        below = z3.And(m.given(source), m.value(source) < 1)
        return z3.And(below, m.value(source) != 0) if source is Source.CONFIG_AUTOTP_SIZE else below

    return z3.And(m.in_scope, z3.Or(*(invalid(source) for source in SIZES)))


def _size_mismatch(m: Model) -> z3.BoolRef:
    return z3.And(m.in_scope, _two_differ(m, SIZES))


def _dtype_mismatch(m: Model) -> z3.BoolRef:
    return z3.And(m.in_scope, _two_differ(m, DTYPES))


def _group_identity_mismatch(m: Model) -> z3.BoolRef:
    return z3.And(m.in_scope, _two_differ(m, GROUPS, but=(Source.CALL_TP_GROUP, Source.MPU_TP_GROUP)))


def _group_size_mismatch(m: Model) -> z3.BoolRef:
    size = m.effective_size
    misfits = (z3.And(m.given(source), SIZE_OF(m.value(source)) != size.value) for source in GROUPS)
    return z3.And(m.in_scope, size.exists, z3.Or(*misfits))


def _size_not_dividing_world(m: Model) -> z3.BoolRef:
    size = m.effective_size
    return z3.And(m.created, size.exists, size.value >= 1, m.given_input.world % size.value != 0)


PREDICATES: Mapping[ViolationCode, Predicate] = MappingProxyType(
    {
        ViolationCode.NO_TP_INTENT: _no_tp_intent,
        ViolationCode.NO_GROUP_SOURCE: _no_group_source,
        ViolationCode.GROUP_AND_MPU: _group_and_mpu,
        ViolationCode.SIZE_MISSING: _size_missing,
        ViolationCode.SIZE_INVALID: _size_invalid,
        ViolationCode.SIZE_MISMATCH: _size_mismatch,
        ViolationCode.DTYPE_MISMATCH: _dtype_mismatch,
        ViolationCode.GROUP_IDENTITY_MISMATCH: _group_identity_mismatch,
        ViolationCode.GROUP_SIZE_MISMATCH: _group_size_mismatch,
        ViolationCode.SIZE_NOT_DIVIDING_WORLD: _size_not_dividing_world,
    }
)
