(* Both formulations, as functions of the four facts (sections 2 and 3), and A0. *)
From Coq Require Import ZArith List Bool.
From TPInit Require Import Vocabulary Table Prose.
Import ListNotations.
Open Scope Z_scope.

Definition agree (f : facts) (condition : Fact * bool) : bool := Bool.eqb (fact f (fst condition)) (snd condition).

Definition row_holds (f : facts) (r : row) : bool := forallb (agree f) (row_facts r).

Definition row_of (f : facts) : option row := find (row_holds f) rows.

Record verdict := Verdict {
  verdict_outcome : Outcome;
  verdict_code : option ViolationCode;
  verdict_fields_from : FieldsFrom;
  verdict_group_from : GroupFrom }.

Definition verdict_of_row (r : row) : verdict :=
  Verdict (row_outcome r) (row_code r) (row_fields_from r) (row_group_from r).

Definition by_table (f : facts) : option verdict := option_map verdict_of_row (row_of f).

Definition rule_fires (f : facts) (r : rule) : bool := forallb (agree f) (rule_when r).

Fixpoint first_some {A B : Type} (which : A -> option B) (l : list A) : option B :=
  match l with
  | [] => None
  | x :: rest => match which x with Some y => Some y | None => first_some which rest end
  end.

Definition otherwise {A : Type} (default : A) (x : option A) : A := match x with Some y => y | None => default end.

(* All rules that fire count together, and a rejection overrides the others. *)
Definition by_prose (f : facts) : verdict :=
  let firing := filter (rule_fires f) rules in
  match first_some rule_rejects firing with
  | Some code => Verdict Outcome_ERROR (Some code) FieldsFrom_NOTHING GroupFrom_NOTHING
  | None =>
    Verdict (otherwise Outcome_ERROR (first_some rule_outcome firing)) None
      (match existsb rule_reads_config firing, existsb rule_reads_call firing with
       | true, true => FieldsFrom_CONFIG_THEN_CALL
       | true, false => FieldsFrom_CONFIG
       | false, true => FieldsFrom_CALL
       | false, false => FieldsFrom_NOTHING
       end)
      (otherwise GroupFrom_NOTHING (first_some rule_group firing))
  end.

(* A0: TPG implies TPI. *)
Definition a0 (f : facts) : bool := implb (is_TPG f) (is_TPI f).
