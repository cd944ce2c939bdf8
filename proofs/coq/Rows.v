(* Section 6, item 1: the table is exhaustive and disjoint under A0, and A0 is necessary. *)
From Coq Require Import ZArith List Bool Lia.
From TPInit Require Import Vocabulary Table Prose Formulations Contract Concrete.
Import ListNotations.
Open Scope Z_scope.

(* 6.1: the rows are numbered 1 to 12, and each states its condition on all four facts. *)
Theorem rows_are_numbered_and_complete :
  map row_number rows = [1; 2; 3; 4; 5; 6; 7; 8; 9; 10; 11; 12] /\
  forall r, In r rows -> map fst (row_facts r) = Fact_all.
Proof.
  split; [reflexivity|]. intros r I. repeat (destruct I as [<-|I]; [reflexivity|]). contradiction.
Qed.

(* A0 holds for every input by construction: a tp_group is a field of a call. *)
Lemma a0_holds : forall {G D C} {GG : Groups G} (i : input G D C), a0 (facts_of i) = true.
Proof. intros. unfold a0, facts_of. simpl. destruct (input_call i); [apply implb_true_r | reflexivity]. Qed.

(* 6.1: under A0, every combination of the four facts matches at least one row. *)
Theorem rows_are_exhaustive : forall f, a0 f = true -> exists r, In r rows /\ row_holds f r = true.
Proof.
  intros f A. destruct (row_of f) as [r|] eqn:E.
  - exists r. apply (find_some _ _ E).
  - exfalso. destruct f as [[] [] [] []]; vm_compute in A, E; discriminate.
Qed.

(* 6.1: no combination of the four facts matches two rows, with A0 or without. *)
Theorem rows_are_disjoint : forall f, (length (filter (row_holds f) rows) <= 1)%nat.
Proof. intros [[] [] [] []]; vm_compute; lia. Qed.

(* 6.1: without A0 the table is not exhaustive, and the combinations that match no row are exactly those that A0
   excludes. *)
Theorem a0_is_necessary :
  (exists f, forall r, In r rows -> row_holds f r = false) /\
  (forall f, a0 f = false <-> forall r, In r rows -> row_holds f r = false).
Proof.
  assert (forall f, a0 f = false -> filter (row_holds f) rows = []) as N.
  { intros [[] [] [] []] A; vm_compute in A; try discriminate; reflexivity. }
  assert (forall f, a0 f = false -> forall r, In r rows -> row_holds f r = false) as M.
  { intros f A r I. destruct (row_holds f r) eqn:E; [|reflexivity].
    pose proof (proj2 (filter_In (row_holds f) r rows) (conj I E)) as J. rewrite (N f A) in J. contradiction. }
  split.
  - exists (Facts false true false false). apply M. reflexivity.
  - intros f. split; [apply M|]. intros H. destruct (a0 f) eqn:A; [|reflexivity].
    destruct (rows_are_exhaustive f A) as (r & I & E). rewrite (H r I) in E. discriminate.
Qed.

(* 6.1: the row of the decision is the one row that matches the input's facts. *)
Theorem the_row_of_the_decision_is_the_one_that_matches :
  forall {G D C} {GG : Groups G} (i : input G D C) r,
  In r rows -> (row_holds (facts_of i) r = true <-> decision_row (resolve i) = Some (row_number r)).
Proof.
  intros G D C GG i r I. unfold resolve, decision_row, row_of. pose proof (a0_holds i) as A.
  destruct (facts_of i) as [[] [] [] []]; vm_compute in A; try discriminate;
  repeat (destruct I as [<-|I]; [vm_compute; split; (discriminate || reflexivity || congruence)|]); contradiction.
Qed.

(* 6.1: every row matches a well-typed input for which the decision has the row's outcome, and exactly the row's own
   violation where the row is an error. *)
Theorem every_row_is_reachable : forall r, In r rows -> exists i : input (Z * Z) unit unit,
  well_typed i = true /\ decision_row (resolve i) = Some (row_number r) /\
  decision_outcome (resolve i) = row_outcome r /\
  map fst (decision_violations (resolve i)) = match row_code r with Some code => [code] | None => [] end.
Proof.
  intros r I. exists (witness_of_row r).
  repeat (destruct I as [<-|I]; [vm_compute; repeat split; reflexivity|]). contradiction.
Qed.

(* The number of facts on which two rows have different conditions. *)
Definition conditions_apart (r s : row) : nat :=
  length (filter (fun which => negb (Bool.eqb (fact (facts_of_row r) which) (fact (facts_of_row s) which))) Fact_all).

(* 6.1: rows 10 and 12 differ in a single condition and in nothing else, and no other pair of rows does. *)
Theorem one_pair_differs_in_a_single_condition : forall r s, In r rows -> In s rows -> row_number r < row_number s ->
  (conditions_apart r s = 1%nat /\ verdict_of_row r = verdict_of_row s <-> row_number r = 10 /\ row_number s = 12).
Proof.
  intros r s I J L.
  repeat (destruct I as [<-|I];
    [repeat (destruct J as [<-|J];
      [clear - L; vm_compute in L |- *; split; intros [X Y]; first [discriminate | split; reflexivity]|]);
     contradiction|]).
  contradiction.
Qed.
