"""The data of the contract as Gallina: the vocabulary's enums, the table's rows, the prose's rules.

`Vocabulary.v`, `Table.v` and `Prose.v` of `proofs/coq` are what these functions return for the shipped `ROWS`,
`RULES` and `DISAGREEMENTS`; everything else there is written by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path

from tpinit.spec.prose import DISAGREEMENTS, RULES, Disagreement, Rule
from tpinit.spec.table import ROWS, Row
from tpinit.spec.vocabulary import DType, Fact, FieldsFrom, GroupFrom, Outcome, Source, ViolationCode

__all__ = ["differing", "generated", "prose_text", "table_text", "vocabulary_text", "write"]

ENUMS: tuple[type[Enum], ...] = (DType, Fact, Outcome, FieldsFrom, GroupFrom, ViolationCode, Source)

_NOTE = "(* Generated from {source} by `python -m tpinit.proofs.coq generate`: do not edit. *)"
_HEADER = """\
From Coq Require Import ZArith List Bool.
{imports}Import ListNotations.
Open Scope Z_scope.
"""


def vocabulary_text(enums: Sequence[type[Enum]] = ENUMS) -> str:
    """Return `Vocabulary.v`: each enum with its equality and the list of its members, and the record of the facts."""
    return "\n".join(
        [
            _NOTE.format(source="tpinit.spec.vocabulary"),
            _HEADER.format(imports=""),
            *(_enum(enum) for enum in enums),
            _facts(),
        ]
    )


def _name(member: Enum) -> str:
    return f"{type(member).__name__}_{member.name}"


def _enum(enum: type[Enum]) -> str:
    name = enum.__name__
    members = [_name(member) for member in enum]
    cases = "\n".join(f"  | {member}, {member} => true" for member in members)
    listed = ";\n   ".join(members)
    return f"""\
Inductive {name} : Set :=
{chr(10).join(f"  | {member}" for member in members)}.

Definition {name}_all : list {name} :=
  [{listed}].

Definition {name}_eqb (a b : {name}) : bool :=
  match a, b with
{cases}
  | _, _ => false
  end.

Lemma {name}_eqb_eq : forall a b, {name}_eqb a b = true <-> a = b.
Proof. intros [] []; simpl; split; congruence. Qed.

Lemma {name}_all_complete : forall a, In a {name}_all.
Proof. intros []; simpl; tauto. Qed.
"""


def _facts() -> str:
    fields = "; ".join(f"is_{fact.name} : bool" for fact in Fact)
    cases = "\n".join(f"  | {_name(fact)} => is_{fact.name} f" for fact in Fact)
    return f"""\
(* One truth for each fact. *)
Record facts : Set := Facts {{ {fields} }}.

Definition fact (f : facts) (which : Fact) : bool :=
  match which with
{cases}
  end.
"""


# --- formulation 1 -------------------------------------------------------------------------------------


def table_text(rows: Iterable[Row] = ROWS) -> str:
    """Return `Table.v`: the rows of the table as one list."""
    return f"""\
{_NOTE.format(source="tpinit.spec.table.ROWS")}
{_HEADER.format(imports=_requires("Vocabulary"))}
(* One row: its number, its condition on each fact, and the result. The code is set where the outcome is an error. *)
Record row : Set := Row {{
  row_number : Z;
  row_facts : list (Fact * bool);
  row_outcome : Outcome;
  row_code : option ViolationCode;
  row_fields_from : FieldsFrom;
  row_group_from : GroupFrom }}.

Definition rows : list row := [
{_list(_row(row) for row in rows)}].
"""


def _row(row: Row) -> str:
    cells = (_name(row.outcome), _option(row.code), _name(row.fields_from), _name(row.group_from))
    return f"  Row {row.number} {_truths(row.facts)}\n    {' '.join(cells)}"


# --- formulation 2 -------------------------------------------------------------------------------------


def prose_text(rules: Iterable[Rule] = RULES, disagreements: Iterable[Disagreement] = DISAGREEMENTS) -> str:
    """Return `Prose.v`: the rules of P1 to P7, and the disagreements of P3."""
    return f"""\
{_NOTE.format(source="tpinit.spec.prose.RULES and DISAGREEMENTS")}
{_HEADER.format(imports=_requires("Vocabulary"))}
(* One sentence: its guard, and what it contributes where the guard holds. *)
Record rule : Set := Rule {{
  rule_when : list (Fact * bool);
  rule_outcome : option Outcome;
  rule_reads_config : bool;
  rule_reads_call : bool;
  rule_group : option GroupFrom;
  rule_rejects : option ViolationCode }}.

Definition rules : list rule := [
{_list(_rule(rule) for rule in rules)}].

(* P3 for one field. Where the list of groups is not empty, the sizes are compared with the sizes of these groups. *)
Record disagreement : Set := Disagreement {{
  disagreement_code : ViolationCode;
  disagreement_sources : list Source;
  disagreement_groups : list Source;
  disagreement_except : option (Source * Source) }}.

Definition disagreements : list disagreement := [
{_list(_disagreement(one) for one in disagreements)}].
"""


def _rule(rule: Rule) -> str:
    reads = f"{_bool(rule.reads_config)} {_bool(rule.reads_call)}"
    says = rule.says.replace('"', "'").replace("(*", "( *").replace("*)", "* )")  # comments nest in Coq
    return (
        f"  (* {rule.clause}: {says} *)\n"
        f"  Rule {_truths(rule.when.items())}\n"
        f"    {_option(rule.outcome)} {reads} {_option(rule.group)} {_option(rule.rejects)}"
    )


def _disagreement(one: Disagreement) -> str:
    pair = one.except_pair
    excepted = "None" if pair is None else f"(Some ({_name(pair[0])}, {_name(pair[1])}))"
    return f"  Disagreement {_name(one.code)}\n    {_members(one.sources)}\n    {_members(one.groups)}\n    {excepted}"


# --- terms ---------------------------------------------------------------------------------------------


def _requires(*modules: str) -> str:
    return f"From TPInit Require Import {' '.join(modules)}.\n"


def _bool(truth: bool) -> str:
    return "true" if truth else "false"


def _option(member: Enum | None) -> str:
    return "None" if member is None else f"(Some {_name(member)})"


def _members(members: Iterable[Enum]) -> str:
    return f"[{'; '.join(map(_name, members))}]"


def _truths(truths: Iterable[tuple[Fact, bool]]) -> str:
    return f"[{'; '.join(f'({_name(fact)}, {_bool(truth)})' for fact, truth in truths)}]"


def _list(terms: Iterable[str]) -> str:
    return ";\n".join(terms)


# --- files ---------------------------------------------------------------------------------------------


def generated() -> dict[str, str]:
    """Return the text of each generated file by its name."""
    return {"Vocabulary.v": vocabulary_text(), "Table.v": table_text(), "Prose.v": prose_text()}


def differing(folder: Path) -> list[str]:
    """Return the names of the generated files that are missing in the folder or differ; an empty list is a pass."""
    return [
        name
        for name, text in generated().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


def write(folder: Path) -> None:
    """Write the generated files. Raises OSError where the folder can't be written to."""
    for name, text in generated().items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
