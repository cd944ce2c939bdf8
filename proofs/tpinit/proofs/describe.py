"""Describe a Z3 model of one symbolic input in the terms of the contract."""

from __future__ import annotations

import z3
from tpinit.spec.model import SIZE_OF, Symbols

__all__ = ["describe"]

_PRESENCE = {
    "call_size": ("call.tp_size", ("tpi",)),
    "call_dtype": ("call.dtype", ("tpi",)),
    "call_group": ("call.tp_group", ("tpg",)),
    "autotp": ("config.autotp_size", ("section", "autotp_given")),
    "alias": ("config.tp.tp_size", ("section", "alias_given")),
    "dtype": ("config.dtype", ("section", "dtype_given")),
    "cgroup": ("config.tp.tp_group", ("section", "cgroup_given")),
    "precision": ("precision", ("precision_given",)),
    "mpu_group": ("mpu.tp_group", ("mpu",)),
    "mesh_group": ("mesh.tp_group", ("mesh",)),
    "world": ("world_size", ()),
}


def describe(state: z3.ModelRef, symbols: Symbols) -> str:
    """Return everything that is given in this Z3 model, with its value: `TPI, config.autotp_size = 0, ...`."""

    def value(term: z3.ExprRef) -> z3.ExprRef:
        return state.eval(term, model_completion=True)

    parts = ["TPI" if z3.is_true(value(symbols.tpi)) else "no TPI"]
    if z3.is_true(value(symbols.section)):
        parts.append("a section")
    for name, (path, gates) in _PRESENCE.items():
        if not all(z3.is_true(value(getattr(symbols, gate))) for gate in gates):
            continue
        term = getattr(symbols, name)
        shown = str(value(term)).rpartition(".")[2]
        if term.sort().name() == "Group":
            shown = f"{shown.replace('!val!', ' ')} of size {value(SIZE_OF(term))}"
        parts.append(f"{path} = {shown}")
    return ", ".join(parts)
