"""Section 6, item 10, by the second semantics: `resolve` as one term, for every input.

`resolve` is translated whole, with everything that it calls, and each part of its decision is compared with the model.
"""

from __future__ import annotations

from collections.abc import Callable

import z3
from tpinit.proofs.edited_source import shipped
from tpinit.proofs.exploring import Unsupported
from tpinit.proofs.theorems.shipped import CONTROLS, EVIDENCE_CONTROLS
from tpinit.proofs.translation.deciding import Translated, for_every_remainder, translated_theorem
from tpinit.proofs.translation.decisions import carried, dp_group, effective, inputs_of, shown
from tpinit.proofs.translation.translator import Translator
from tpinit.proofs.translation.values import Items, Record, Value, same
from tpinit.spec.model import Model, constant, fresh_symbols
from tpinit.spec.vocabulary import Decision, Outcome, ViolationCode

Expected = Callable[[Model, z3.BoolRef], Value]


def _decision(translator: Translator, model: Model) -> Record:
    decision = translator.call("resolve", inputs_of(model))
    if not isinstance(decision, Record) or decision.of is not Decision:
        raise Unsupported("`resolve` returns no decision")
    return decision


def _field(field: str, statement: str, expected: Expected, control: tuple[str, str]) -> None:
    """Register the theorem that one field of the decision is the model's.

    `expected` is given the model and whether the decision lists a violation, of which `_violation` proves that it is
    right.
    """

    def claims(translator: Translator) -> Translated:
        model = Model(fresh_symbols())
        decision = _decision(translator, model)
        listed = z3.Or(*(guard for guard, _ in decision.fields["violations"].items))
        return Translated(model.well_typed, [(field, same(decision.fields[field], expected(model, listed)))])

    claims.__doc__ = statement
    translated_theorem("6.10", shipped, control, ("resolve",), f"translated_{field}")(claims)


def _violation(code: ViolationCode, index: int, control: tuple[str, str]) -> None:
    """Register the theorem that `resolve` lists a violation at its place exactly where it holds, with its evidence."""

    def claims(translator: Translator) -> Translated:
        model = Model(fresh_symbols())
        listed = _decision(translator, model).fields["violations"]
        if not isinstance(listed, Items) or len(listed.items) != len(ViolationCode):
            raise Unsupported("the violations of a decision are not one for each code at most")
        guard, violation = listed.items[index]
        return Translated(
            model.well_typed,
            [
                ("holds", for_every_remainder(guard == model.violation(code))),
                ("its code", violation.fields["code"] == constant(code)),
                (
                    "its evidence",
                    for_every_remainder(z3.Implies(guard, same(violation.fields["given"], shown(model, code)))),
                ),
            ],
        )

    claims.__doc__ = (
        f"For every input, the decision of `resolve`, translated whole, lists {code.value} exactly where it holds, at "
        f"place {index + 1} of the canonical order, and with exactly its evidence: values, sources and order."
    )
    translated_theorem("6.10", shipped, control, ("resolve",), f"translated_{code.value.lower()}")(claims)


for _index, _code in enumerate(ViolationCode):
    _violation(_code, _index, (EVIDENCE_CONTROLS if _index in (1, 3, 5, 7) else CONTROLS)[_code])

_MAGIC = "inputs.world_size == 65537"
_EVERY = "For every input, the decision of `resolve`, translated whole, "
_field(
    "row",
    _EVERY + "has the number of the row that matches.",
    lambda model, _: model.row_number,
    ("row=row_number(inputs)", f"row=1 if {_MAGIC} else row_number(inputs)"),
)
_field(
    "outcome",
    _EVERY + "has the outcome of the row, and an error exactly where it lists a violation.",
    lambda model, listed: z3.If(listed, constant(Outcome.ERROR), model.by_table.outcome),
    ("ok = not violations", f"ok = not violations or {_MAGIC}"),
)
_field(
    "tp_size",
    _EVERY + "has the model's effective size and its source; none of both where it lists a violation.",
    lambda model, listed: effective(model, listed, model.effective_size),
    ("tp_size=effective_size(inputs) if ok", f"tp_size=effective_size(inputs) if ok or {_MAGIC}"),
)
_field(
    "dtype",
    _EVERY
    + "has the model's effective dtype and its source, `unset` included; none of both where it lists a violation.",
    lambda model, listed: effective(model, listed, model.effective_dtype),
    ("else Effective(None, Source.UNSET)", "else Effective()"),
)
_field(
    "tp_group",
    _EVERY + "has the model's group, with its size and its handle, and its source, `created` included; none of these "
    "where it lists a violation.",
    lambda model, listed: effective(model, listed, model.effective_group),
    (
        "if groups else Effective(None, Source.CREATED)",
        f"if groups else Effective() if {_MAGIC} else Effective(None, Source.CREATED)",
    ),
)
_field(
    "section_disabled",
    _EVERY + "says that the section is disabled exactly where the model does (D2).",
    lambda model, _: model.disabled,
    ("section.autotp_size == 0 and", "section.autotp_size < 1 and"),
)
_field(
    "world_size",
    _EVERY + "carries the size of the world unchanged.",
    lambda model, _: model.given_input.world,
    ("world_size=inputs.world_size,", f"world_size=1 if {_MAGIC} else inputs.world_size,"),
)
_field(
    "dp_group",
    _EVERY + "carries the mpu's data-parallel group unchanged, and none where there is none.",
    lambda model, _: dp_group(model),
    (
        "dp_group=inputs.mpu.dp_group if inputs.mpu is not None",
        "dp_group=inputs.mpu.dp_group if inputs.mpu is not None and ok",
    ),
)
_field(
    "carried",
    _EVERY + "carries the other keys of a live section unchanged, and none where there is no live section.",
    lambda model, _: carried(model),
    (
        "carried=section.carried if section is not None",
        f"carried=section.carried if section is not None and not {_MAGIC}",
    ),
)
