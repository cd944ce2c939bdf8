"""Evaluates the Z3 model on one concrete input. The decision comes from the model alone; tests compare it."""

from __future__ import annotations

from functools import lru_cache

import z3
from tpinit.spec.model import SIZE_OF, FieldTerm, GroupSort, Model, Symbols, constant, fresh_symbols
from tpinit.spec.vocabulary import (
    Decision,
    DType,
    Effective,
    Group,
    Inputs,
    Outcome,
    Section,
    Source,
    Violation,
    ViolationCode,
)

__all__ = ["assume", "evaluate"]


def assume(inputs: Inputs, symbols: Symbols) -> list[z3.BoolRef]:
    """Return the constraints that make `symbols` this concrete input. Values that are not given stay free."""
    call, section, mpu = inputs.call, inputs.section or Section(), inputs.mpu
    present = {
        "tpi": call is not None,
        "tpg": call is not None and call.tp_group is not None,
        "section": inputs.section is not None,
        "mpu": mpu is not None,
        "mesh": inputs.mesh is not None,
        "autotp_given": section.autotp_size is not None,
        "alias_given": section.tp_size is not None,
        "dtype_given": section.dtype is not None,
        "precision_given": inputs.precision is not None,
        "cgroup_given": section.tp_group is not None,
    }
    values = {
        "world": inputs.world_size,
        "call_size": None if call is None else call.tp_size,
        "autotp": section.autotp_size,
        "alias": section.tp_size,
        "call_dtype": None if call is None else call.dtype,
        "dtype": section.dtype,
        "precision": inputs.precision,
        "call_group": None if call is None else call.tp_group,
        "cgroup": section.tp_group,
        "mpu_group": None if mpu is None else mpu.tp_group,
        "mesh_group": inputs.mesh,
    }
    groups = {value.identity: value for value in values.values() if isinstance(value, Group)}
    terms = {identity: z3.Const(f"group_{identity}", GroupSort) for identity in groups}
    facts = [getattr(symbols, name) == truth for name, truth in present.items()]
    for name, value in values.items():
        if isinstance(value, Group):
            facts.append(getattr(symbols, name) == terms[value.identity])
        elif value is not None:
            facts.append(getattr(symbols, name) == (constant(value) if isinstance(value, DType) else value))
    facts += [SIZE_OF(terms[identity]) == group.size for identity, group in groups.items()]
    return facts + ([z3.Distinct(*terms.values())] if len(terms) > 1 else [])


@lru_cache(maxsize=1)
def _concrete_model() -> Model:
    return Model(fresh_symbols())


def evaluate(inputs: Inputs) -> Decision:
    """Decide one concrete input by the Z3 model alone. Its violations have no evidence.

    Raises RuntimeError if the model leaves the decision open, which would be a defect of the model.
    """
    model = _concrete_model()
    solver = z3.Solver()
    solver.add(assume(inputs, model.given_input))
    if solver.check() != z3.sat:
        raise RuntimeError(f"the model has no state for {inputs}")
    state = solver.model()

    def true(term: z3.BoolRef) -> bool:
        return bool(z3.is_true(state.eval(term, model_completion=True)))

    def member(term: z3.DatatypeRef) -> str:
        return str(state.eval(term, model_completion=True)).partition(".")[2]

    def source_of(term: FieldTerm) -> Source | None:
        return next((source for source, comes in term.comes_from.items() if true(comes)), None)

    codes = tuple(code for code in ViolationCode if true(model.violation(code)))
    row = state.eval(model.row_number, model_completion=True).as_long()
    disabled = true(model.disabled)
    if codes:
        outcome = Outcome.ERROR
        return Decision(row, outcome, violations=tuple(map(Violation, codes)), section_disabled=disabled)
    size, dtype, group = model.effective_size, model.effective_dtype, model.effective_group
    supplied: dict[Source, Group | None] = {
        Source.CALL_TP_GROUP: inputs.call.tp_group if inputs.call else None,
        Source.MPU_TP_GROUP: inputs.mpu.tp_group if inputs.mpu else None,
        Source.CONFIG_TP_GROUP: inputs.section.tp_group if inputs.section else None,
        Source.MESH_TP_GROUP: inputs.mesh,
    }
    group_source = source_of(group)
    return Decision(
        row,
        Outcome[member(model.outcome)],
        Effective(state.eval(size.value).as_long(), source_of(size)) if true(size.exists) else Effective(),
        Effective(DType[member(dtype.value)] if true(dtype.exists) else None, source_of(dtype)),
        Effective(None if group_source is None else supplied.get(group_source), group_source),
        section_disabled=disabled,
    )
