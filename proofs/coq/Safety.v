(* Section 6, items 4 and 5: no given value is silently ignored, and a success is safe. *)
From Coq Require Import ZArith List Bool Lia.
From TPInit Require Import Vocabulary Table Prose Formulations Contract Reflection Meaning Violations Concrete
  Rows Equivalence Merge.
Import ListNotations.
Open Scope Z_scope.

Section OneInput.
Context {G D C : Type} {GG : Groups G} (i : input G D C).

Lemma success_has_no_violation : decision_outcome (resolve i) <> Outcome_ERROR -> forall code, violated i code = false.
Proof.
  rewrite outcome_of_the_decision. destruct (violations i) eqn:E; simpl; [|congruence].
  intros _. apply no_violation_iff. exact E.
Qed.

Lemma nothing_holds : decision_outcome (resolve i) <> Outcome_ERROR -> forall code, ~ holds i code.
Proof.
  intros H code F. apply violated_exactly_when_section_four_says in F.
  rewrite (success_has_no_violation H) in F. discriminate.
Qed.

Lemma fields_of_a_success : decision_outcome (resolve i) <> Outcome_ERROR ->
  decision_tp_size (resolve i) = option_map (fun x => (fst x, Some (snd x))) (effective_size i) /\
  decision_dtype (resolve i) = Some (effective_dtype i) /\
  decision_tp_group (resolve i) = effective_group i.
Proof.
  intros H. pose proof (proj2 (no_violation_iff i) (success_has_no_violation H)) as E.
  unfold resolve. rewrite E. simpl. auto.
Qed.

Lemma a_start_is_a_success : starts i = true -> decision_outcome (resolve i) <> Outcome_ERROR.
Proof. unfold starts. intros S E. rewrite E in S. discriminate. Qed.

Lemma a_start_is_in_scope : starts i = true -> in_scope i = true.
Proof.
  intros S. unfold starts in S. rewrite outcome_of_the_decision in S. destruct (is_nil (violations i)); [|discriminate].
  unfold in_scope. destruct (facts_of i) as [[] [] [] []]; vm_compute in S |- *; congruence.
Qed.

Lemma a_start_has_a_size : starts i = true -> exists s n, effective_size i = Some (s, n).
Proof.
  intros S. pose proof (a_start_is_in_scope S) as I. apply in_scope_iff in I.
  destruct (effective_size i) as [(s & n)|] eqn:E; [eauto|]. exfalso.
  pose proof (proj1 (effective_size_none i) E) as N.
  destruct I as [[c T]|K].
  - apply (N Source_CALL_TP_SIZE (call_tp_size c)). constructor. exact T.
  - apply (nothing_holds (a_start_is_a_success S) ViolationCode_SIZE_MISSING). split; [exact K | exact N].
Qed.

Lemma sizes_of_a_start_agree : starts i = true -> forall s n t m, gives_size i s n -> gives_size i t m -> n = m.
Proof.
  intros S s n t m X Y. destruct (Z.eq_dec n m) as [E|E]; [exact E|]. exfalso.
  apply (nothing_holds (a_start_is_a_success S) ViolationCode_SIZE_MISMATCH).
  split; [apply in_scope_iff, a_start_is_in_scope, S|]. exists s, n, t, m. auto.
Qed.

(* 6.4: where AutoTP starts, every given size equals the size of the decision. *)
Theorem no_size_is_ignored : starts i = true -> forall s n, gives_size i s n ->
  exists t, decision_tp_size (resolve i) = Some (t, Some n).
Proof.
  intros S s n H. destruct (fields_of_a_success (a_start_is_a_success S)) as (-> & _ & _).
  destruct (a_start_has_a_size S) as (t & m & E). exists t. rewrite E. simpl.
  rewrite (sizes_of_a_start_agree S s n t m H); [reflexivity|]. apply effective_size_iff in E. apply E.
Qed.

(* 6.4: on success every given dtype equals the dtype of the decision, also where there is no AutoTP (row 2). *)
Theorem no_dtype_is_ignored : decision_outcome (resolve i) <> Outcome_ERROR -> forall s d, gives_dtype i s d ->
  exists t, decision_dtype (resolve i) = Some (t, Some d).
Proof.
  intros S s d H. destruct (fields_of_a_success S) as (_ & -> & _).
  destruct (effective_dtype i) as [t [e|]] eqn:E.
  - exists t. apply effective_dtype_some in E. destruct (DType_eqb d e) eqn:Q; [apply DType_eqb_eq in Q; congruence|].
    exfalso. assert (d <> e) as N by (intros F; apply DType_eqb_eq in F; congruence).
    destruct (in_scope i) eqn:I.
    + apply (nothing_holds S ViolationCode_DTYPE_MISMATCH). split; [apply in_scope_iff, I|]. exists s, d, t, e. auto.
    + assert (forall u f, gives_dtype i u f -> u = Source_PRECISION) as P.
      { intros u f K. apply not_true_iff_false in I. inversion K; subst; [exfalso|exfalso|reflexivity]; apply I,
        in_scope_iff.
        - left. eexists; eassumption.
        - right. eexists; eassumption. }
      rewrite (P _ _ H) in H. rewrite (P _ _ E) in E. apply dtype_at_iff in H, E. congruence.
  - destruct (effective_dtype_none i _ E) as [_ N]. contradiction (N _ _ H).
Qed.

Lemma no_group_and_mpu : decision_outcome (resolve i) <> Outcome_ERROR ->
  is_TPG (facts_of i) = true -> is_MPU (facts_of i) = true -> False.
Proof.
  intros S T M. apply (nothing_holds S ViolationCode_GROUP_AND_MPU).
  split; [apply is_TPG_iff, T | apply is_MPU_iff, M].
Qed.

Lemma a_start_has_a_group_source : starts i = true -> exists x, effective_group i = Some x /\
  forall t g, supplies i t g -> exists s h, x = (s, Some h).
Proof.
  intros S. rewrite effective_group_by_facts. pose proof (a_start_is_in_scope S) as I. unfold in_scope in I.
  pose proof (no_group_and_mpu (a_start_is_a_success S)) as X.
  destruct (is_TPG (facts_of i)) eqn:T, (is_MPU (facts_of i)) eqn:M; [contradiction (X eq_refl eq_refl)| | |].
  - destruct (proj1 (is_some_iff _) T) as [g E]. unfold group_at. rewrite E. simpl. eauto.
  - rewrite I. destruct (proj1 (is_some_iff _) M) as [m E]. unfold group_at. rewrite E. simpl. eauto.
  - destruct (is_CFG (facts_of i)) eqn:K.
    + destruct (group_at i Source_CONFIG_TP_GROUP) eqn:A; [eauto 6|].
      destruct (group_at i Source_MESH_TP_GROUP) eqn:B; [eauto 6|]. eexists. split; [reflexivity|].
      intros t g Y. apply group_at_iff in Y. unfold facts_of, is_TPG, is_MPU in T, M.
      destruct t; simpl in Y, A, B; try discriminate; try congruence.
      * rewrite Y in T. discriminate.
      * destruct (input_mpu i); discriminate.
    + exfalso. rewrite orb_false_r in I.
      apply (nothing_holds (a_start_is_a_success S) ViolationCode_NO_GROUP_SOURCE). simpl.
      rewrite <- is_TPI_iff, <- is_TPG_iff, <- is_CFG_iff, <- is_MPU_iff. rewrite I, T, K, M. intuition discriminate.
Qed.

(* 6.4: where AutoTP starts, every supplied group is the group of the decision. *)
Theorem no_group_is_ignored : starts i = true -> forall s g, supplies i s g ->
  exists t, decision_tp_group (resolve i) = Some (t, Some g).
Proof.
  intros S s g H. pose proof (a_start_is_a_success S) as O. destruct (fields_of_a_success O) as (_ & _ & ->).
  destruct (a_start_has_a_group_source S) as (x & E & F). destruct (F _ _ H) as (t & h & ->).
  exists t. rewrite E. destruct (group_eqb g h) eqn:Q; [apply group_eqb_eq in Q; congruence|]. exfalso.
  assert (supplies i t h) as K by (apply (the_named_source_holds_the_value i); exact E).
  assert (~ excepted s t) as X.
  { intros [[-> ->]|[-> ->]]; apply (no_group_and_mpu O); apply is_some_iff;
    inversion H; inversion K; subst;
    match goal with
    | A : input_call i = Some ?c, B : call_tp_group ?c = Some ?y |- exists _, bind _ _ = _ => exists y; rewrite A;
      exact B
    | M : input_mpu i = Some ?m |- exists _, input_mpu i = _ => exists m; exact M
    end. }
  apply (nothing_holds O ViolationCode_GROUP_IDENTITY_MISMATCH).
  split; [apply in_scope_iff, a_start_is_in_scope, S|].
  exists s, g, t, h. repeat split; auto. intros F'. apply group_eqb_eq in F'. congruence.
Qed.

(* 6.4, D1, D2: a section is disabled exactly when it sets autotp_size to 0 and there is neither a call nor a
   tp.tp_size; without one of the three, it counts. A disabled section never starts AutoTP. *)
Theorem only_zero_disables_a_section : forall s, input_section i = Some s ->
  (~ CFG i <-> section_autotp_size s = Some 0 /\ section_tp_size s = None /\ input_call i = None) /\
  (~ CFG i -> starts i = false).
Proof.
  intros s E. split.
  - split.
    + intros N. destruct (section_disabled i) eqn:O.
      * unfold section_disabled in O. rewrite E in O. destruct (input_call i); [discriminate|].
        destruct (section_autotp_size s), (section_tp_size s); try discriminate.
        apply Z.eqb_eq in O. subst. auto.
      * exfalso. apply N. exists s. apply live_section_iff. unfold live_section. rewrite O. exact E.
    + intros O [t [F K]]. rewrite E in F. injection F as <-. contradiction.
  - intros N. destruct (starts i) eqn:S; [|reflexivity]. exfalso. apply N.
    pose proof (proj1 (in_scope_iff i) (a_start_is_in_scope S)) as [[c T]|K]; [|exact K].
    destruct (section_disabled i) eqn:O.
    + unfold section_disabled in O. rewrite E, T in O. discriminate.
    + exists s. apply live_section_iff. unfold live_section. rewrite O. exact E.
Qed.

(* 6.5: where AutoTP starts there is a size and it is at least 1; in particular, a size of 0 never starts it (D2). *)
Theorem size_is_at_least_one : starts i = true ->
  exists s n, decision_tp_size (resolve i) = Some (s, Some n) /\ 1 <= n.
Proof.
  intros S. destruct (fields_of_a_success (a_start_is_a_success S)) as (-> & _ & _).
  destruct (a_start_has_a_size S) as (s & n & E). exists s, n. rewrite E. split; [reflexivity|].
  destruct (Z_lt_le_dec n 1) as [L|L]; [exfalso|exact L].
  apply effective_size_iff in E. destruct E as [E _].
  pose proof (proj1 (in_scope_iff i) (a_start_is_in_scope S)) as I.
  assert (forall t, gives_size i t n -> t = Source_CONFIG_AUTOTP_SIZE /\ n = 0) as Z.
  { intros t H. destruct (Source_eqb t Source_CONFIG_AUTOTP_SIZE && (n =? 0)) eqn:B.
    - apply andb_true_iff in B. destruct B as [B K]. apply Source_eqb_eq in B. split; [exact B | lia].
    - exfalso. apply (nothing_holds (a_start_is_a_success S) ViolationCode_SIZE_INVALID).
      split; [exact I|]. exists t, n. repeat split; auto. intros [-> ->]. discriminate. }
  destruct (Z s E) as [-> ->]. inversion E as [|s' n' (K & N) A|]; subst. apply N. repeat split; auto.
  - destruct (section_tp_size s') as [m|] eqn:B; [|reflexivity]. exfalso.
    assert (gives_size i Source_CONFIG_TP_SIZE m) as H by (econstructor; [split; eassumption | exact B]).
    pose proof (sizes_of_a_start_agree S _ _ _ _ H E) as ->. destruct (Z _ H). discriminate.
  - destruct (input_call i) as [c|] eqn:B; [|reflexivity]. exfalso.
    assert (gives_size i Source_CALL_TP_SIZE (call_tp_size c)) as H by (constructor; exact B).
    rewrite (sizes_of_a_start_agree S _ _ _ _ H E) in H. destruct (Z _ H). discriminate.
Qed.

(* 6.5: where AutoTP starts with a supplied group, the number of ranks in that group is the size of the decision. *)
Theorem the_group_has_the_size : starts i = true -> forall s g, decision_tp_group (resolve i) = Some (s, Some g) ->
  exists t, decision_tp_size (resolve i) = Some (t, Some (size_of g)).
Proof.
  intros S s g H. pose proof (a_start_is_a_success S) as O. destruct (fields_of_a_success O) as (-> & _ & E).
  rewrite E in H. destruct (a_start_has_a_size S) as (t & n & F). exists t. rewrite F. simpl.
  destruct (Z.eq_dec (size_of g) n) as [->|N]; [reflexivity|]. exfalso.
  apply (nothing_holds O ViolationCode_GROUP_SIZE_MISMATCH).
  split; [apply in_scope_iff, a_start_is_in_scope, S|]. exists t, n, s, g.
  split; [apply effective_size_iff; exact F|]. split; [apply (the_named_source_holds_the_value i); exact H | exact N].
Qed.

(* 6.5: where AutoTP starts with a created group, the size divides the world. *)
Theorem created_groups_tile_the_world : starts i = true -> forall s, decision_tp_group (resolve i) = Some (s, None) ->
  s = Source_CREATED /\ exists t n, decision_tp_size (resolve i) = Some (t, Some n) /\ (n | input_world_size i).
Proof.
  intros S s H. pose proof (a_start_is_a_success S) as O. destruct (size_is_at_least_one S) as (t & n & E & P).
  destruct (fields_of_a_success O) as (F & _ & K). rewrite K in H.
  destruct (the_named_source_holds_the_value i) as (_ & _ & _ & _ & W). destruct (W s H) as (-> & Q & N).
  split; [reflexivity|]. exists t, n. split; [exact E|].
  destruct (Z.eq_dec (input_world_size i mod n) 0) as [R|R]; [apply Z.mod_divide; lia|]. exfalso.
  apply (nothing_holds O ViolationCode_SIZE_NOT_DIVIDING_WORLD). repeat split; auto. exists t, n.
  rewrite F in E. destruct (effective_size i) as [(t' & n')|] eqn:X; [|discriminate]. simpl in E. injection E as -> ->.
  split; [apply effective_size_iff; exact X|]. split; [exact P|]. rewrite <- Z.mod_divide by lia. exact R.
Qed.

(* 6.5, P4: a call's own group together with an mpu is always an error, even where both supply the same group. *)
Theorem a_calls_group_never_meets_an_mpu : TPG i -> MPU i -> decision_outcome (resolve i) = Outcome_ERROR.
Proof.
  intros T M. destruct (Outcome_eqb (decision_outcome (resolve i)) Outcome_ERROR) eqn:E.
  - apply Outcome_eqb_eq. exact E.
  - exfalso. apply no_group_and_mpu; [|apply is_TPG_iff, T | apply is_MPU_iff, M].
    intros F. rewrite F in E. discriminate.
Qed.

(* 6.3: where AutoTP starts there is a size and a source of the group, and that source is "created" exactly when CFG
   holds and no group is supplied (D4): in no row does a new group replace a supplied one. *)
Theorem a_group_is_created_only_when_none_is_supplied : starts i = true ->
  (exists x, decision_tp_group (resolve i) = Some x) /\
  ((exists v, decision_tp_group (resolve i) = Some (Source_CREATED, v)) <->
   CFG i /\ forall t g, ~ supplies i t g).
Proof.
  intros S. destruct (fields_of_a_success (a_start_is_a_success S)) as (_ & _ & ->).
  destruct (a_start_has_a_group_source S) as ([s v] & E & F). split; [eauto|]. split.
  - intros [w H]. destruct w as [g|].
    + pose proof (the_named_source_holds_the_value i) as (_ & _ & _ & W & _). apply W in H. inversion H.
    + apply (the_named_source_holds_the_value i) in H. tauto.
  - intros [K N]. destruct v as [g|].
    + exfalso. apply (N s g). apply (the_named_source_holds_the_value i). exact E.
    + pose proof (the_named_source_holds_the_value i) as (_ & _ & _ & _ & W).
      destruct (W s E) as (-> & _). eauto.
Qed.

(* 6.2: where AutoTP starts, size and dtype come from where the row's column says. Column "config": never from the call.
   Column "config, gaps filled from the call": from the call exactly where the config gives none. Column "call": the
   size from the call; the dtype is the call's, also where the precision is named as its source. *)
Theorem columns_say_where_fields_come_from : starts i = true -> forall r, row_of (facts_of i) = Some r ->
  match row_fields_from r with
  | FieldsFrom_NOTHING => False
  | FieldsFrom_CONFIG =>
    (forall n, effective_size i <> Some (Source_CALL_TP_SIZE, n)) /\ fst (effective_dtype i) <> Source_CALL_DTYPE
  | FieldsFrom_CALL => exists c, input_call i = Some c /\
    effective_size i = Some (Source_CALL_TP_SIZE, call_tp_size c) /\ snd (effective_dtype i) = Some (call_dtype c) /\
    In (fst (effective_dtype i)) [Source_PRECISION; Source_CALL_DTYPE]
  | FieldsFrom_CONFIG_THEN_CALL => exists c, input_call i = Some c /\
    ((forall n, ~ gives_size i Source_CONFIG_AUTOTP_SIZE n /\ ~ gives_size i Source_CONFIG_TP_SIZE n) <->
     effective_size i = Some (Source_CALL_TP_SIZE, call_tp_size c)) /\
    ((forall d, ~ gives_dtype i Source_CONFIG_DTYPE d /\ ~ gives_dtype i Source_PRECISION d) <->
     effective_dtype i = (Source_CALL_DTYPE, Some (call_dtype c)))
  end.
Proof.
  intros S r R. assert (row_fields_from r = match is_TPI (facts_of i), is_CFG (facts_of i) with
    | false, false => FieldsFrom_NOTHING | false, true => FieldsFrom_CONFIG
    | true, false => FieldsFrom_CALL | true, true => FieldsFrom_CONFIG_THEN_CALL end) as E.
  { pose proof (a_start_is_a_success S) as O. rewrite outcome_of_the_decision in O.
    destruct (is_nil (violations i)); [|congruence]. clear S. revert O R. unfold row_of.
    destruct (facts_of i) as [[] [] [] []]; intros O R; vm_compute in R; try discriminate; injection R as <-;
      try reflexivity;
    exfalso; apply O; reflexivity. }
  rewrite E. pose proof (a_start_is_in_scope S) as I. unfold in_scope in I.
  destruct (is_TPI (facts_of i)) eqn:T, (is_CFG (facts_of i)) eqn:K; try discriminate.
  - apply is_TPI_iff in T. destruct T as [c T]. exists c. split; [exact T|].
    destruct (the_call_fills_only_what_is_missing i) as [A B]. split; split.
    + intros N. destruct (proj2 A (conj (ex_intro _ c T) N)) as [n X]. rewrite X.
      apply the_named_source_holds_the_value in X. inversion X; subst. congruence.
    + intros X. apply A. eauto.
    + intros N. pose proof (proj2 B (conj (ex_intro _ c T) N)) as X.
      destruct (effective_dtype i) as [s [d|]] eqn:Y; simpl in X; subst.
      * apply effective_dtype_some in Y. inversion Y; subst. congruence.
      * apply effective_dtype_none in Y. destruct Y. discriminate.
    + intros X. apply B. rewrite X. reflexivity.
  - apply is_TPI_iff in T. destruct T as [c T]. exists c. split; [exact T|].
    assert (forall s, ~ cfg_section i s) as N.
    { intros s H. apply not_true_iff_false in K. apply K. apply is_CFG_iff. exists s. exact H. }
    assert (gives_dtype i Source_CALL_DTYPE (call_dtype c)) as X by (constructor; exact T).
    pose proof (a_start_is_a_success S) as O. pose proof (no_dtype_is_ignored O _ _ X) as [t Y].
    destruct (fields_of_a_success O) as (_ & Z & _). rewrite Z in Y. injection Y as Y. rewrite Y. simpl.
    split; [|split; [reflexivity|]].
    + apply effective_size_iff. split; [constructor; exact T|]. right. right. repeat split; intros n H;
      inversion H; subst; eapply N; eassumption.
    + apply effective_dtype_some in Y. inversion Y; subst; auto. exfalso. eapply N. eassumption.
  - assert (forall c, input_call i <> Some c) as N.
    { intros c H. apply not_true_iff_false in T. apply T. apply is_TPI_iff. exists c. exact H. }
    split.
    + intros n H. apply the_named_source_holds_the_value in H. inversion H; subst. eapply N. eassumption.
    + intros H. apply the_call_fills_only_what_is_missing in H. destruct H as [[c H] _]. eapply N. eassumption.
Qed.

(* 6.2: where AutoTP starts, the group comes from where the row's last column says. *)
Theorem columns_say_where_the_group_comes_from : starts i = true -> forall r, row_of (facts_of i) = Some r ->
  exists s g, decision_tp_group (resolve i) = Some (s, g) /\
  match row_group_from r with
  | GroupFrom_NOTHING => False
  | GroupFrom_CALL => s = Source_CALL_TP_GROUP
  | GroupFrom_MPU => s = Source_MPU_TP_GROUP
  | GroupFrom_CONFIG => In s [Source_CONFIG_TP_GROUP; Source_MESH_TP_GROUP; Source_CREATED]
  end.
Proof.
  intros S r R. destruct (fields_of_a_success (a_start_is_a_success S)) as (_ & _ & ->).
  destruct (a_start_has_a_group_source S) as ([s g] & E & _). exists s, g. split; [exact E|].
  unfold effective_group in E. rewrite R in E. simpl in E. destruct (row_group_from r); [discriminate| | |].
  - destruct (bind (input_call i) call_tp_group); [|discriminate]. simpl in E. congruence.
  - destruct (input_mpu i); [|discriminate]. simpl in E. congruence.
  - destruct (bind (live_section i) section_tp_group); simpl in E; [injection E as <- _; simpl; auto|].
    destruct (input_mesh i); simpl in E; injection E as <- _; simpl; auto.
Qed.

End OneInput.
