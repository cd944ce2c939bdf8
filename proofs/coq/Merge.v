(* Section 6, item 3: the merge of config and call. *)
From Coq Require Import ZArith List Bool Lia.
From TPInit Require Import Vocabulary Table Prose Formulations Contract Reflection Meaning Violations Rows.
Import ListNotations.
Open Scope Z_scope.

(* The same input with another section. *)
Definition with_section {G D C : Type} (i : input G D C) (s : option (section G C)) : input G D C :=
  Input (input_world_size i) (input_call i) s (input_precision i) (input_mpu i) (input_mesh i).

(* The effective size and dtype, written into a section. *)
Definition written {G D C : Type} {GG : Groups G} (i : input G D C) (s : section G C) : section G C :=
  Section_ (option_map snd (effective_size i)) (section_tp_size s) (snd (effective_dtype i)) (section_tp_group s)
    (section_carried s).

Section OneInput.
Context {G D C : Type} {GG : Groups G} (i : input G D C).

(* 6.3, P1: a size or dtype that the config gives is the effective one, and the config is named as its source, also
   where the call gives one. Of the two keys of the size, autotp_size comes first (D5); of the two dtypes, the
   section's comes before the precision. *)
Theorem config_is_canonical :
  (forall n, gives_size i Source_CONFIG_AUTOTP_SIZE n -> effective_size i = Some (Source_CONFIG_AUTOTP_SIZE, n)) /\
  (forall n, gives_size i Source_CONFIG_TP_SIZE n -> (forall m, ~ gives_size i Source_CONFIG_AUTOTP_SIZE m) ->
    effective_size i = Some (Source_CONFIG_TP_SIZE, n)) /\
  (forall d, gives_dtype i Source_CONFIG_DTYPE d -> effective_dtype i = (Source_CONFIG_DTYPE, Some d)) /\
  (forall d, gives_dtype i Source_PRECISION d -> (forall e, ~ gives_dtype i Source_CONFIG_DTYPE e) ->
    effective_dtype i = (Source_PRECISION, Some d)).
Proof.
  repeat split.
  - intros n H. apply effective_size_iff. split; auto.
  - intros n H N. apply effective_size_iff. split; auto.
  - intros d H. apply dtype_at_iff in H. unfold effective_dtype. rewrite H. reflexivity.
  - intros d H N. apply dtype_at_iff in H. unfold effective_dtype. rewrite H.
    destruct (dtype_at i Source_CONFIG_DTYPE) as [e|] eqn:E; [|reflexivity].
    apply dtype_at_iff in E. contradiction (N e E).
Qed.

Lemma effective_dtype_some : forall s d, effective_dtype i = (s, Some d) -> gives_dtype i s d.
Proof.
  intros s d. rewrite <- dtype_at_iff. unfold effective_dtype.
  destruct (dtype_at i Source_CONFIG_DTYPE) as [a|] eqn:A; [intros E; injection E as <- <-; exact A|].
  destruct (dtype_at i Source_PRECISION) as [b|] eqn:B; [intros E; injection E as <- <-; exact B|].
  destruct (dtype_at i Source_CALL_DTYPE) as [c|] eqn:K; [intros E; injection E as <- <-; exact K | discriminate].
Qed.

Lemma effective_dtype_none : forall s, effective_dtype i = (s, None) ->
  s = Source_UNSET /\ forall t d, ~ gives_dtype i t d.
Proof.
  intros s. unfold effective_dtype.
  destruct (dtype_at i Source_CONFIG_DTYPE) eqn:A; [discriminate|].
  destruct (dtype_at i Source_PRECISION) eqn:B; [discriminate|].
  destruct (dtype_at i Source_CALL_DTYPE) eqn:K; [discriminate|].
  intros E. injection E as <-. split; [reflexivity|]. intros t d H.
  pose proof (proj2 (dtype_at_iff i t d) H) as F. destruct H; congruence.
Qed.

(* 6.3, P2: the size or the dtype comes from the call exactly when there is a call and the config gives none. *)
Theorem the_call_fills_only_what_is_missing :
  ((exists n, effective_size i = Some (Source_CALL_TP_SIZE, n)) <->
   TPI i /\ forall n, ~ gives_size i Source_CONFIG_AUTOTP_SIZE n /\ ~ gives_size i Source_CONFIG_TP_SIZE n) /\
  (fst (effective_dtype i) = Source_CALL_DTYPE <->
   TPI i /\ forall d, ~ gives_dtype i Source_CONFIG_DTYPE d /\ ~ gives_dtype i Source_PRECISION d).
Proof.
  split.
  - setoid_rewrite effective_size_iff. split.
    + intros (n & H & O). split; [inversion H; subst; eexists; eassumption|].
      intros m. destruct O as [O|[(O & _)|(_ & A & B)]]; try discriminate. split; [apply A | apply B].
    + intros [[c E] N]. exists (call_tp_size c). split; [constructor; exact E|]. right. right.
      repeat split; intros m; apply (N m).
  - unfold effective_dtype. split.
    + destruct (dtype_at i Source_CONFIG_DTYPE) eqn:A; [discriminate|].
      destruct (dtype_at i Source_PRECISION) eqn:B; [discriminate|].
      destruct (dtype_at i Source_CALL_DTYPE) as [d|] eqn:K; [intros _|discriminate].
      apply dtype_at_iff in K. split; [inversion K; subst; eexists; eassumption|].
      intros e. split; intros H; apply dtype_at_iff in H; congruence.
    + intros [[c E] N].
      destruct (dtype_at i Source_CONFIG_DTYPE) as [a|] eqn:A; [apply dtype_at_iff in A; destruct (N a);
        contradiction|].
      destruct (dtype_at i Source_PRECISION) as [b|] eqn:B; [apply dtype_at_iff in B; destruct (N b); contradiction|].
      simpl. rewrite E. reflexivity.
Qed.

(* 6.3, P3: where TPI or CFG holds, SIZE_MISMATCH is absent exactly when all given sizes are one value, and
   DTYPE_MISMATCH is absent exactly when all given dtypes are. *)
Theorem mismatch_exactly_when_values_differ : scope i ->
  (violated i ViolationCode_SIZE_MISMATCH = false <-> exists n, forall s m, gives_size i s m -> m = n) /\
  (violated i ViolationCode_DTYPE_MISMATCH = false <-> exists d, forall s e, gives_dtype i s e -> e = d).
Proof.
  intros S. apply in_scope_iff in S. split; unfold violated; rewrite S; simpl andb; split.
  - intros N. destruct (given_sizes i) as [|(s & n) l] eqn:E.
    + exists 0. intros t m H. apply in_given_sizes in H. rewrite E in H. contradiction.
    + exists n. intros t m H. apply in_given_sizes in H. rewrite E in H.
      apply (nothing_differs _ _ Z.eqb_eq N t m s n H). simpl. auto.
  - intros [n H]. apply not_true_iff_false. intros F. apply (differ_iff _ _ Z.eqb_eq) in F.
    destruct F as (s & v & t & w & I & J & N). apply N. apply in_given_sizes in I, J.
    rewrite (H _ _ I), (H _ _ J). reflexivity.
  - intros N. destruct (given_dtypes i) as [|(s & d) l] eqn:E.
    + exists DType_FP32. intros t e H. apply in_given_dtypes in H. rewrite E in H. contradiction.
    + exists d. intros t e H. apply in_given_dtypes in H. rewrite E in H.
      apply (nothing_differs _ _ DType_eqb_eq N t e s d H). simpl. auto.
  - intros [d H]. apply not_true_iff_false. intros F. apply (differ_iff _ _ DType_eqb_eq) in F.
    destruct F as (s & v & t & w & I & J & N). apply N. apply in_given_dtypes in I, J.
    rewrite (H _ _ I), (H _ _ J). reflexivity.
Qed.

(* 6.3: writing the effective size and dtype into the section and merging again changes neither value, and the
   section is then their source. CFG still holds. This is so for every input, errors included. *)
Theorem merging_is_idempotent : forall s, live_section i = Some s ->
  let again := with_section i (Some (written i s)) in
  live_section again = Some (written i s) /\
  effective_size again = option_map (fun x => (Source_CONFIG_AUTOTP_SIZE, snd x)) (effective_size i) /\
  effective_dtype again =
    match snd (effective_dtype i) with Some d => (Source_CONFIG_DTYPE, Some d) | None => (Source_UNSET, None) end.
Proof.
  intros s L again.
  assert (live_section again = Some (written i s)) as A.
  { apply live_section_iff. split; [reflexivity|]. intros (X & Y & Z). simpl in X, Y, Z.
    apply live_section_iff in L. destruct L as [L O]. apply O. repeat split; auto.
    destruct (effective_size i) as [(t & n)|] eqn:E; [|discriminate]. injection X as ->.
    apply effective_size_iff in E. destruct E as [E _].
    destruct E as [c E|s' n (F & _) E|s' n (F & _) E]; try congruence. }
  split; [exact A|]. split.
  - unfold effective_size at 1. simpl. rewrite A. simpl.
    destruct (effective_size i) as [(t & n)|] eqn:E; simpl; [reflexivity|].
    pose proof (proj1 (effective_size_none i) E) as N.
    destruct (section_tp_size s) as [n|] eqn:B.
    + exfalso. apply (N Source_CONFIG_TP_SIZE n). econstructor; [apply live_section_iff; exact L | exact B].
    + destruct (input_call i) as [c|] eqn:K; [|reflexivity].
      exfalso. apply (N Source_CALL_TP_SIZE (call_tp_size c)). constructor. exact K.
  - unfold effective_dtype at 1. simpl. rewrite A. simpl.
    destruct (effective_dtype i) as [t [d|]] eqn:E; simpl; [reflexivity|].
    destruct (effective_dtype_none _ E) as [_ N].
    destruct (input_precision i) as [d|] eqn:P; [exfalso; apply (N Source_PRECISION d); constructor; exact P|].
    destruct (input_call i) as [c|] eqn:K; [|reflexivity].
    exfalso. apply (N Source_CALL_DTYPE (call_dtype c)). constructor. exact K.
Qed.

(* 6.3: two merges that were written separately give the same values: section 4's, by the order of the sources, and
   the prose's, which fills the config's gaps from the call. *)
Theorem both_merges_agree :
  prose_size i = option_map snd (effective_size i) /\ prose_dtype i = snd (effective_dtype i).
Proof.
  unfold prose_size, prose_dtype, effective_size, effective_dtype, size_at, dtype_at, fill. split.
  - destruct (bind (live_section i) section_autotp_size); [reflexivity|].
    destruct (bind (live_section i) section_tp_size); [reflexivity|]. destruct (input_call i); reflexivity.
  - destruct (bind (live_section i) section_dtype); [reflexivity|].
    destruct (input_precision i); [reflexivity|]. destruct (input_call i); reflexivity.
Qed.

(* The group's column of the row, in terms of what is given. *)
Lemma effective_group_by_facts : effective_group i =
  if is_TPG (facts_of i) then
    if is_MPU (facts_of i) then None
    else option_map (fun g => (Source_CALL_TP_GROUP, Some g)) (group_at i Source_CALL_TP_GROUP)
  else if is_MPU (facts_of i) then
    if is_TPI (facts_of i) || is_CFG (facts_of i)
    then option_map (fun g => (Source_MPU_TP_GROUP, Some g)) (group_at i Source_MPU_TP_GROUP) else None
  else if is_CFG (facts_of i) then
    match group_at i Source_CONFIG_TP_GROUP, group_at i Source_MESH_TP_GROUP with
    | Some g, _ => Some (Source_CONFIG_TP_GROUP, Some g)
    | None, Some g => Some (Source_MESH_TP_GROUP, Some g)
    | None, None => Some (Source_CREATED, None)
    end
  else None.
Proof.
  pose proof (a0_holds i) as A. unfold effective_group, row_of.
  destruct (facts_of i) as [[] [] [] []] eqn:F; vm_compute in A; try discriminate; simpl;
    destruct (bind (live_section i) section_tp_group), (input_mesh i); reflexivity.
Qed.

(* 6.3: the source that is named for a field holds the field's value. A dtype without a value is unset and nothing gives
   one; a group without a value is created, CFG holds, and nothing supplies one. *)
Theorem the_named_source_holds_the_value :
  (forall s n, effective_size i = Some (s, n) -> gives_size i s n) /\
  (forall s d, effective_dtype i = (s, Some d) -> gives_dtype i s d) /\
  (forall s, effective_dtype i = (s, None) -> s = Source_UNSET /\ forall t d, ~ gives_dtype i t d) /\
  (forall s g, effective_group i = Some (s, Some g) -> supplies i s g) /\
  (forall s, effective_group i = Some (s, None) ->
    s = Source_CREATED /\ CFG i /\ forall t g, ~ supplies i t g).
Proof.
  split; [|split; [|split; [|split]]].
  - intros s n E. apply effective_size_iff in E. apply E.
  - exact effective_dtype_some.
  - exact effective_dtype_none.
  - intros s g. rewrite <- group_at_iff, effective_group_by_facts.
    destruct (is_TPG (facts_of i)), (is_MPU (facts_of i)), (is_TPI (facts_of i)), (is_CFG (facts_of i));
      simpl orb; cbv iota; try discriminate;
    destruct (group_at i Source_CALL_TP_GROUP) eqn:A, (group_at i Source_MPU_TP_GROUP) eqn:B,
      (group_at i Source_CONFIG_TP_GROUP) eqn:K, (group_at i Source_MESH_TP_GROUP) eqn:M; simpl option_map;
    intros E; try discriminate; injection E as <- <-; assumption.
  - intros s. rewrite effective_group_by_facts. rewrite <- is_CFG_iff.
    destruct (is_TPG (facts_of i)) eqn:T, (is_MPU (facts_of i)) eqn:M; try discriminate.
    + destruct (group_at i Source_CALL_TP_GROUP); discriminate.
    + destruct (is_TPI (facts_of i) || is_CFG (facts_of i)); [|discriminate].
      destruct (group_at i Source_MPU_TP_GROUP); discriminate.
    + destruct (is_CFG (facts_of i)); [|discriminate].
      destruct (group_at i Source_CONFIG_TP_GROUP) eqn:K; [discriminate|].
      destruct (group_at i Source_MESH_TP_GROUP) eqn:H; [discriminate|].
      intros E. injection E as <-. repeat split; auto. intros t g S. apply group_at_iff in S.
      assert (is_TPG (facts_of i) = true -> False) as T' by congruence.
      assert (is_MPU (facts_of i) = true -> False) as M' by congruence.
      destruct t; simpl in S; try discriminate.
      * apply T'. apply is_some_iff. eauto.
      * simpl in K. congruence.
      * apply M'. apply is_some_iff. destruct (input_mpu i); [eauto | discriminate].
      * simpl in H. congruence.
Qed.

End OneInput.
