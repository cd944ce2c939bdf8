(* Section 6, item 6: the decision is total and deterministic, and every violation can hold alone. *)
From Coq Require Import ZArith List Bool Lia.
From TPInit Require Import Vocabulary Table Prose Formulations Contract Reflection Meaning Violations Concrete
  Rows Equivalence Merge Safety.
Import ListNotations.
Open Scope Z_scope.

Section OneInput.
Context {G D C : Type} {GG : Groups G} (i : input G D C).

(* 6.6: every input has a row from 1 to 12. [resolve] is a function, so it gives every input one decision. *)
Theorem the_decision_is_total : exists r, In r rows /\ row_holds (facts_of i) r = true /\
  decision_row (resolve i) = Some (row_number r) /\ 1 <= row_number r <= 12.
Proof.
  destruct (rows_are_exhaustive _ (a0_holds i)) as (r & I & H). exists r. repeat split; auto.
  - apply the_row_of_the_decision_is_the_one_that_matches; assumption.
  - clear H. repeat (destruct I as [<-|I]; [vm_compute; discriminate|]). contradiction.
  - clear H. repeat (destruct I as [<-|I]; [vm_compute; discriminate|]). contradiction.
Qed.

(* 6.6: the outcome is an error exactly when some violation holds by the sentences of section 4. *)
Theorem an_error_exactly_when_a_violation_holds :
  decision_outcome (resolve i) = Outcome_ERROR <-> exists code, holds i code.
Proof.
  split.
  - rewrite outcome_of_the_decision. intros E. destruct (violations i) as [|code l] eqn:V.
    + exfalso. pose proof (proj1 (no_violation_iff i) V) as N. simpl in E.
      assert (forall code, In code [ViolationCode_NO_TP_INTENT; ViolationCode_NO_GROUP_SOURCE;
        ViolationCode_GROUP_AND_MPU]
        -> verdict_code (by_prose (facts_of i)) <> Some code) as M.
      { intros code I F. apply (rows_reject_exactly_by_their_codes i code I) in F. rewrite N in F. discriminate. }
      pose proof (a0_holds i) as A. clear V N.
      destruct (facts_of i) as [[] [] [] []]; vm_compute in A, E; try discriminate;
        eapply M; try reflexivity; simpl; auto.
    + exists code. apply violated_exactly_when_section_four_says.
      assert (In code (violations i)) as J by (rewrite V; simpl; auto). unfold violations in J.
      apply filter_In in J. apply J.
  - intros (code & H). destruct (Outcome_eqb (decision_outcome (resolve i)) Outcome_ERROR) eqn:E.
    + apply Outcome_eqb_eq. exact E.
    + exfalso. eapply nothing_holds; [|exact H]. intros F. rewrite F in E. discriminate.
Qed.

(* 6.6: without a violation, the outcome is the row's. *)
Theorem a_success_has_the_outcome_of_its_row : decision_outcome (resolve i) <> Outcome_ERROR ->
  exists r, In r rows /\ row_holds (facts_of i) r = true /\ decision_outcome (resolve i) = row_outcome r.
Proof.
  intros S. rewrite outcome_of_the_decision in S |- *. destruct (is_nil (violations i)); [|congruence].
  destruct (row_of (facts_of i)) as [r|] eqn:R.
  - exists r. destruct (find_some _ _ R). repeat split; auto.
    pose proof (table_and_prose_agree_on_every_input i) as T. unfold by_table in T. rewrite R in T.
    injection T as <-. reflexivity.
  - pose proof (table_and_prose_agree_on_every_input i) as T. unfold by_table in T. rewrite R in T. discriminate.
Qed.

Lemma codes_of_the_decision : map fst (decision_violations (resolve i)) = violations i.
Proof. unfold resolve. simpl. rewrite map_map. apply map_id. Qed.

(* 6.6: the decision lists every violation that holds and no other, each once, in the order of section 4. *)
Theorem the_decision_lists_all_that_hold :
  (forall code, In code (map fst (decision_violations (resolve i))) <-> holds i code) /\
  map fst (decision_violations (resolve i)) = filter (violated i) ViolationCode_all.
Proof.
  rewrite codes_of_the_decision. split; [|reflexivity]. intros code.
  rewrite <- violated_exactly_when_section_four_says. unfold violations. rewrite filter_In.
  split; [tauto|]. intros H. split; [apply ViolationCode_all_complete | exact H].
Qed.

(* 6.6: an error has no effective values. *)
Theorem an_error_has_no_effective_values : decision_outcome (resolve i) = Outcome_ERROR ->
  decision_tp_size (resolve i) = None /\ decision_dtype (resolve i) = None /\ decision_tp_group (resolve i) = None.
Proof.
  intros E. apply an_error_exactly_when_a_violation_holds in E. destruct E as (code & H).
  apply violated_exactly_when_section_four_says in H. unfold resolve.
  destruct (violations i) eqn:V; [|simpl; auto].
  rewrite (proj1 (no_violation_iff i) V) in H. discriminate.
Qed.

(* 6.6: rows 1, 5, 10 and 12 are errors, whatever the fields hold. *)
Theorem error_rows_are_always_errors : forall r, In r rows -> row_holds (facts_of i) r = true ->
  (row_outcome r = Outcome_ERROR <-> In (row_number r) [1; 5; 10; 12]) /\
  (row_outcome r = Outcome_ERROR -> decision_outcome (resolve i) = Outcome_ERROR).
Proof.
  intros r I H. split.
  - clear H. repeat (destruct I as [<-|I]; [vm_compute; intuition congruence|]). contradiction.
  - intros E. rewrite outcome_of_the_decision. destruct (is_nil (violations i)); [|reflexivity].
    destruct (facts_of i) as [[] [] [] []];
    repeat (destruct I as [<-|I]; [vm_compute in H, E |- *; congruence|]); contradiction.
Qed.

(* 6.6: the decision passes on the world size, the mpu's dp_group and what a section that counts carries, unchanged, and
   says whether the section is disabled. *)
Theorem the_rest_is_passed_on :
  decision_world_size (resolve i) = input_world_size i /\
  decision_dp_group (resolve i) = bind (input_mpu i) mpu_dp_group /\
  decision_carried (resolve i) = option_map section_carried (live_section i) /\
  (decision_section_disabled (resolve i) = true <-> exists s, input_section i = Some s /\ ~ CFG i).
Proof.
  repeat split; try reflexivity.
  - intros H. simpl in H. destruct (input_section i) as [s|] eqn:E.
    + exists s. split; [reflexivity|]. intros [t K]. apply live_section_iff in K. unfold live_section in K.
      rewrite H in K. discriminate.
    + unfold section_disabled in H. rewrite E in H. discriminate.
  - intros (s & E & N). simpl. destruct (section_disabled i) eqn:O; [reflexivity|]. exfalso. apply N. exists s.
    apply live_section_iff. unfold live_section. rewrite O. exact E.
Qed.

End OneInput.

(* 6.6, D2: the fields of a disabled section have no effect: without the section the decision is the same, but for
   saying that a section was disabled. *)
Theorem a_disabled_section_has_no_effect : forall {G D C} {GG : Groups G} (i : input G D C),
  section_disabled i = true ->
  let without := resolve (with_section i None) in
  resolve i =
    Decision (decision_row without) (decision_outcome without) (decision_tp_size without) (decision_dtype without)
      (decision_tp_group without) (decision_violations without) true (decision_world_size without)
      (decision_dp_group without) (decision_carried without).
Proof.
  intros G D C GG [w c s p m h] O. simpl. unfold section_disabled in O. simpl in O.
  destruct s as [[a t d g k]|]; [|discriminate]. destruct c; [discriminate|].
  destruct a as [a|]; [|discriminate]. destruct t; [discriminate|]. simpl in O. apply Z.eqb_eq in O. subst a.
  reflexivity.
Qed.

(* 6.6: for each of the ten violations there is a well-typed input for which it holds and no other does. *)
Theorem every_violation_is_reachable_alone : forall code, exists i : input (Z * Z) unit unit,
  well_typed i = true /\ forall other, holds i other <-> other = code.
Proof.
  intros code. exists (witness_alone code). split; [destruct code; reflexivity|]. intros other.
  rewrite <- violated_exactly_when_section_four_says.
  destruct code, other; vm_compute; intuition congruence.
Qed.

(* 6.6: every row that is no error has an input that succeeds, and every row that is one has an input. *)
Theorem every_outcome_is_reachable : forall outcome, exists i : input (Z * Z) unit unit,
  well_typed i = true /\ decision_outcome (resolve i) = outcome.
Proof.
  intros outcome.
  assert (exists r, In r rows /\ row_outcome r = outcome) as (r & I & <-).
  { assert (existsb (fun r => Outcome_eqb (row_outcome r) outcome) rows = true) as H by (destruct outcome; reflexivity).
    apply existsb_exists in H. destruct H as (r & I & H). exists r. apply Outcome_eqb_eq in H. auto. }
  destruct (every_row_is_reachable r I) as (i & W & _ & H & _). eauto.
Qed.
