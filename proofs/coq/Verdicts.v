(* Section 6, item 2, for the four facts alone: table and prose, written independently, give the same verdict. *)
From Coq Require Import ZArith List Bool.
From TPInit Require Import Vocabulary Table Prose Formulations.
Import ListNotations.

(* 6.2: for every combination of the facts that A0 allows, the table and the prose give the same outcome and the same
   code. *)
Theorem table_and_prose_agree_on_the_outcome : forall f, a0 f = true ->
  option_map (fun v => (verdict_outcome v, verdict_code v)) (by_table f) =
  Some (verdict_outcome (by_prose f), verdict_code (by_prose f)).
Proof. intros [[] [] [] []] A; vm_compute in A; try discriminate; reflexivity. Qed.

(* 6.2: for every combination of the facts that A0 allows, the table and the prose take size and dtype from the same
   source, and the group from the same source. *)
Theorem table_and_prose_agree_on_the_sources : forall f, a0 f = true ->
  option_map (fun v => (verdict_fields_from v, verdict_group_from v)) (by_table f) =
  Some (verdict_fields_from (by_prose f), verdict_group_from (by_prose f)).
Proof. intros [[] [] [] []] A; vm_compute in A; try discriminate; reflexivity. Qed.
