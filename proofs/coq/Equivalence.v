(* Section 6, item 2: the table and the prose, written independently, give the same outcome. *)
From Coq Require Import ZArith List Bool Lia.
From TPInit Require Import Vocabulary Table Prose Formulations Contract Reflection Meaning Violations Concrete
  Rows Verdicts.
Import ListNotations.
Open Scope Z_scope.

Section OneInput.
Context {G D C : Type} {GG : Groups G} (i : input G D C).

(* 6.2: for every input the table and the prose give the same verdict: outcome, code, and both sources. *)
Theorem table_and_prose_agree_on_every_input : by_table (facts_of i) = Some (by_prose (facts_of i)).
Proof.
  pose proof (table_and_prose_agree_on_the_outcome _ (a0_holds i)) as O.
  pose proof (table_and_prose_agree_on_the_sources _ (a0_holds i)) as S.
  destruct (by_table (facts_of i)) as [[a b c d]|]; [|discriminate].
  destruct (by_prose (facts_of i)) as [a' b' c' d']. simpl in O, S. congruence.
Qed.

(* 6.2: NO_TP_INTENT, NO_GROUP_SOURCE and GROUP_AND_MPU hold exactly where the table names them and exactly where the
   prose names them. *)
Theorem rows_reject_exactly_by_their_codes : forall code,
  In code [ViolationCode_NO_TP_INTENT; ViolationCode_NO_GROUP_SOURCE; ViolationCode_GROUP_AND_MPU] ->
  (violated i code = true <-> option_map verdict_code (by_table (facts_of i)) = Some (Some code)) /\
  (violated i code = true <-> verdict_code (by_prose (facts_of i)) = Some code).
Proof.
  intros code I. pose proof (a0_holds i) as A.
  assert (forall b, violated i code = b -> match code with
    | ViolationCode_NO_TP_INTENT | ViolationCode_NO_GROUP_SOURCE | ViolationCode_GROUP_AND_MPU => True
    | _ => False end) as K.
  { intros b _. repeat (destruct I as [<-|I]; [exact Logic.I|]). contradiction. }
  specialize (K _ eq_refl).
  destruct code; try contradiction; unfold violated; destruct (facts_of i) as [[] [] [] []];
    vm_compute in A; try discriminate; vm_compute; split; split; congruence.
Qed.

(* P7 gives "no AutoTP" exactly where the input is not in scope. *)
Lemma no_autotp_iff_out_of_scope :
  existsb (fun r => match rule_outcome r with Some Outcome_NO_AUTOTP => true | _ => false end)
    (filter (rule_fires (facts_of i)) rules) = negb (in_scope i).
Proof. unfold in_scope. destruct (facts_of i) as [[] [] [] []]; reflexivity. Qed.

Lemma two_differ_iff : forall {A} (eqb : A -> A -> bool) (at_source : Source -> option A) d,
  (forall a b, eqb a b = true <-> a = b) ->
  (two_differ eqb at_source d = true <->
   exists s v t w, In s (disagreement_sources d) /\ In t (disagreement_sources d) /\
     at_source s = Some v /\ at_source t = Some w /\ v <> w /\
     ~ (exists a b, disagreement_except d = Some (a, b) /\ (s = a /\ t = b \/ s = b /\ t = a))).
Proof.
  intros A eqb at_source d EQ. unfold two_differ. rewrite existsb_exists.
  assert (forall s t, negb (match disagreement_except d with
      | Some (a, b) => (Source_eqb s a && Source_eqb t b) || (Source_eqb s b && Source_eqb t a)
      | None => false end) = true <->
    ~ (exists a b, disagreement_except d = Some (a, b) /\ (s = a /\ t = b \/ s = b /\ t = a))) as X.
  { intros s t. apply not_true_iff. destruct (disagreement_except d) as [[a b]|].
    - rewrite orb_true_iff, !andb_true_iff, !Source_eqb_eq. split.
      + intros H. exists a, b. auto.
      + intros (a' & b' & E & H). injection E as <- <-. exact H.
    - split; [discriminate | intros (a & b & E & _); discriminate]. }
  assert (forall v w, negb (eqb v w) = true <-> v <> w) as N.
  { intros v w. apply not_true_iff. apply EQ. }
  split.
  - intros (s & I & H). apply existsb_exists in H. destruct H as (t & J & H).
    destruct (at_source s) as [v|] eqn:V; [|discriminate]. destruct (at_source t) as [w|] eqn:W; [|discriminate].
    apply andb_true_iff in H. destruct H as [H1 H2]. exists s, v, t, w. rewrite <- X, <- N. auto 6.
  - intros (s & v & t & w & I & J & V & W & H1 & H2). exists s. split; [exact I|].
    apply existsb_exists. exists t. split; [exact J|]. rewrite V, W. apply andb_true_iff.
    split; [apply N; exact H1 | apply X; exact H2].
Qed.

Lemma nothing_there : forall {A} (eqb : A -> A -> bool) (at_source : Source -> option A) d,
  (forall s, In s (disagreement_sources d) -> at_source s = None) -> two_differ eqb at_source d = false.
Proof.
  intros A eqb at_source d N. unfold two_differ.
  apply not_true_iff_false. intros H. apply existsb_exists in H. destruct H as (s & I & H).
  apply existsb_exists in H. destruct H as (t & _ & H). rewrite (N s I) in H. discriminate.
Qed.

Ltac not_in_these := intros s I; repeat (destruct I as [<-|I]; [reflexivity|]); contradiction.

Lemma not_excepted_by_none : forall s t : Source,
  ~ (exists a b, @None (Source * Source) = Some (a, b) /\ (s = a /\ t = b \/ s = b /\ t = a)).
Proof. intros s t (a & b & E & _). discriminate. Qed.

Lemma gives_size_in : forall s n, gives_size i s n ->
  In s [Source_CALL_TP_SIZE; Source_CONFIG_TP_SIZE; Source_CONFIG_AUTOTP_SIZE].
Proof. intros s n []; simpl; tauto. Qed.

Lemma gives_dtype_in : forall s d, gives_dtype i s d ->
  In s [Source_CALL_DTYPE; Source_PRECISION; Source_CONFIG_DTYPE].
Proof. intros s d []; simpl; tauto. Qed.

Lemma supplies_in : forall s g, supplies i s g ->
  In s [Source_MESH_TP_GROUP; Source_CONFIG_TP_GROUP; Source_MPU_TP_GROUP; Source_CALL_TP_GROUP].
Proof. intros s g []; simpl; tauto. Qed.

Lemma effective_when_sizes_agree : forall s n, violated i ViolationCode_SIZE_MISMATCH = false -> in_scope i = true ->
  gives_size i s n -> exists t, effective_is i t n.
Proof.
  intros s n N I H. unfold violated in N. rewrite I in N. simpl in N.
  destruct (effective_size i) as [(t & m)|] eqn:E.
  - exists t. pose proof (proj1 (effective_size_iff i t m) E) as F. destruct F as [F O].
    apply in_given_sizes in F. apply in_given_sizes in H.
    rewrite (nothing_differs _ _ Z.eqb_eq N _ _ _ _ H F). apply effective_size_iff. exact E.
  - contradiction (proj1 (effective_size_none i) E _ _ H).
Qed.

(* 6.2: the disagreements of P3 are the mismatches of section 4: the same codes hold. One exception: P3 compares every
   given size with every group, so it can add GROUP_SIZE_MISMATCH where SIZE_MISMATCH holds already. *)
Theorem section_four_is_p3 :
  map disagreement_code disagreements =
    [ViolationCode_SIZE_MISMATCH; ViolationCode_DTYPE_MISMATCH; ViolationCode_GROUP_IDENTITY_MISMATCH;
     ViolationCode_GROUP_SIZE_MISMATCH] /\
  forall d, In d disagreements ->
  (disagreement_code d = ViolationCode_GROUP_SIZE_MISMATCH -> violated i ViolationCode_SIZE_MISMATCH = false) ->
  disagrees i d = violated i (disagreement_code d).
Proof.
  split; [reflexivity|]. intros d I E. apply bool_eq_iff. rewrite violated_exactly_when_section_four_says.
  unfold disagrees. rewrite no_autotp_iff_out_of_scope, negb_involutive.
  destruct I as [<-|[<-|[<-|[<-|[]]]]]; cbn [disagreement_code disagreement_groups holds].
  - apply true_and; [apply in_scope_iff|].
    rewrite (nothing_there DType_eqb), (nothing_there group_eqb), !orb_false_r by not_in_these.
    rewrite (two_differ_iff _ _ _ Z.eqb_eq). cbn [disagreement_sources disagreement_except]. split.
    + intros (s & v & t & w & _ & _ & V & W & N & _). apply size_at_iff in V, W. eauto 8.
    + intros (s & v & t & w & V & W & N). exists s, v, t, w. rewrite !size_at_iff.
      repeat split; auto; [eapply gives_size_in | eapply gives_size_in | apply not_excepted_by_none]; eassumption.
  - apply true_and; [apply in_scope_iff|].
    rewrite (nothing_there Z.eqb), (nothing_there group_eqb), orb_false_l, orb_false_r by not_in_these.
    rewrite (two_differ_iff _ _ _ DType_eqb_eq). cbn [disagreement_sources disagreement_except]. split.
    + intros (s & v & t & w & _ & _ & V & W & N & _). apply dtype_at_iff in V, W. eauto 8.
    + intros (s & v & t & w & V & W & N). exists s, v, t, w. rewrite !dtype_at_iff.
      repeat split; auto; [eapply gives_dtype_in | eapply gives_dtype_in | apply not_excepted_by_none]; eassumption.
  - apply true_and; [apply in_scope_iff|].
    rewrite (nothing_there Z.eqb), (nothing_there DType_eqb), !orb_false_l by not_in_these.
    rewrite (two_differ_iff _ _ _ group_eqb_eq). cbn [disagreement_sources disagreement_except]. split.
    + intros (s & v & t & w & _ & _ & V & W & N & O). apply group_at_iff in V, W. exists s, v, t, w.
      repeat split; auto. intros X. apply O. do 2 eexists. split; [reflexivity|]. destruct X; tauto.
    + intros (s & v & t & w & V & W & N & O). exists s, v, t, w. rewrite !group_at_iff.
      repeat split; auto; try (eapply supplies_in; eassumption).
      intros (a & b & X & Y). injection X as <- <-. apply O. unfold excepted. tauto.
  - specialize (E eq_refl). cbn [disagreement_sources]. split.
    + intros H. apply andb_true_iff in H. destruct H as [S H]. split; [apply in_scope_iff; exact S|].
      apply existsb_exists in H. destruct H as (s & I & H). apply existsb_exists in H. destruct H as (t & J & H).
      destruct (size_at i s) as [n|] eqn:V; [|discriminate]. destruct (group_at i t) as [g|] eqn:W; [|discriminate].
      apply size_at_iff in V. apply group_at_iff in W.
      destruct (effective_when_sizes_agree _ _ E S V) as (s' & F). exists s', n, t, g.
      repeat split; auto; [apply F | apply F | lia].
    + intros (S & s & n & t & g & (V & _) & W & N). apply andb_true_iff. split; [apply in_scope_iff; exact S|].
      apply existsb_exists. exists s. split; [eapply gives_size_in; eassumption|].
      apply existsb_exists. exists t. split; [eapply supplies_in; eassumption|].
      apply size_at_iff in V. apply group_at_iff in W. rewrite V, W. lia.
Qed.

Lemma no_violation_iff : violations i = [] <-> forall code, violated i code = false.
Proof.
  unfold violations. split.
  - intros E code. apply not_true_iff_false. intros H.
    pose proof (proj2 (filter_In (violated i) code ViolationCode_all) (conj (ViolationCode_all_complete code) H)) as J.
    rewrite E in J. contradiction.
  - intros H. destruct (filter (violated i) ViolationCode_all) as [|code l] eqn:E; [reflexivity|].
    assert (In code (filter (violated i) ViolationCode_all)) as J by (rewrite E; simpl; auto).
    apply filter_In in J. rewrite H in J. destruct J. discriminate.
Qed.

Lemma outcome_of_the_decision : decision_outcome (resolve i) =
  if is_nil (violations i) then verdict_outcome (by_prose (facts_of i)) else Outcome_ERROR.
Proof.
  pose proof table_and_prose_agree_on_every_input as E. unfold by_table in E.
  unfold resolve, decision_outcome. destruct (row_of (facts_of i)) as [r|]; [|discriminate].
  simpl in E. injection E as <-. destruct (is_nil (violations i)); reflexivity.
Qed.

(* 6.2: for every input, the outcome of the decision, which reads the table and section 4, is the outcome that the
   prose gives with the disagreements of P3. SIZE_MISSING, SIZE_INVALID and SIZE_NOT_DIVIDING_WORLD are defined in
   section 4 only and count on both sides. *)
Theorem both_formulations_decide_alike : decision_outcome (resolve i) = prose_outcome i.
Proof.
  rewrite outcome_of_the_decision. unfold prose_outcome.
  destruct (violations i) as [|code l] eqn:V; simpl is_nil; cbv iota.
  - pose proof (proj1 no_violation_iff V) as N.
    assert (existsb (disagrees i) disagreements = false) as ->.
    { apply not_true_iff_false. intros H. apply existsb_exists in H. destruct H as (d & I & H).
      rewrite (proj2 section_four_is_p3 d I (fun _ => N _)), N in H. discriminate. }
    unfold section_four_only. cbn [existsb]. rewrite !N. reflexivity.
  - destruct (existsb (disagrees i) disagreements || existsb (violated i) section_four_only) eqn:E; [reflexivity|].
    apply orb_false_iff in E. destruct E as [E F].
    assert (forall d, In d disagreements -> disagrees i d = false) as X.
    { intros d I. apply not_true_iff_false. intros H. apply not_true_iff_false in E. apply E.
      apply existsb_exists. exists d. auto. }
    assert (In code (violations i)) as J by (rewrite V; simpl; auto). unfold violations in J.
    apply filter_In in J. destruct J as [_ J].
    assert (violated i ViolationCode_SIZE_MISMATCH = false) as S.
    { pose proof (proj2 section_four_is_p3 _ (or_introl eq_refl)) as K. rewrite (X _ (or_introl eq_refl)) in K.
      symmetry. apply K. discriminate. }
    assert (forall d, In d disagreements -> violated i (disagreement_code d) = false) as Y.
    { intros d I. rewrite <- (proj2 section_four_is_p3 d I (fun _ => S)). apply X. exact I. }
    assert (In code [ViolationCode_NO_TP_INTENT; ViolationCode_NO_GROUP_SOURCE; ViolationCode_GROUP_AND_MPU]) as K.
    { unfold section_four_only in F. cbn [existsb] in F. repeat rewrite orb_false_iff in F.
      destruct F as (F1 & F2 & F3 & _).
      pose proof (Y _ (or_introl eq_refl)). pose proof (Y _ (or_intror (or_introl eq_refl))).
      pose proof (Y _ (or_intror (or_intror (or_introl eq_refl)))).
      pose proof (Y _ (or_intror (or_intror (or_intror (or_introl eq_refl))))).
      cbn [disagreement_code] in *. destruct code; simpl; auto; congruence. }
    pose proof (proj1 (proj2 (rows_reject_exactly_by_their_codes code K)) J) as P.
    clear - P. destruct (facts_of i) as [[] [] [] []]; vm_compute in P; try discriminate; reflexivity.
Qed.

End OneInput.
