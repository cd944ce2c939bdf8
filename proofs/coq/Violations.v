(* The predicates of Contract.v hold exactly when the sentences of section 4 (Meaning.v) do. *)
From Coq Require Import ZArith List Bool Lia.
From TPInit Require Import Vocabulary Table Prose Formulations Contract Reflection Meaning.
Import ListNotations.
Open Scope Z_scope.

Section Predicates.
Context {G D C : Type} {GG : Groups G} (i : input G D C).

(* --- the predicates --- *)

Lemma left_to_p4_iff : forall s t,
  left_to_p4 s t = true <-> s = Source_CALL_TP_GROUP /\ t = Source_MPU_TP_GROUP.
Proof. intros s t. unfold left_to_p4. rewrite andb_true_iff, !Source_eqb_eq. reflexivity. Qed.

(* Two of the list that differ, of which the first does not come after the second. *)
Lemma first_differing_nil : forall (l : list (Source * G)),
  first_differing l = [] <->
  forall a s g b t h c, l = a ++ (s, g) :: b ++ (t, h) :: c -> left_to_p4 s t = true \/ g = h.
Proof.
  induction l as [|(s & g) l IH]; simpl.
  - split; [|reflexivity]. intros _ a s g b t h c E. destruct a; discriminate.
  - destruct (find _ l) as [(t & h)|] eqn:F.
    + split; [discriminate|]. intros H. exfalso. apply find_some in F. destruct F as [I F].
      apply in_split in I. destruct I as (b & c & ->). simpl in F.
      apply andb_true_iff in F. destruct F as [F1 F2]. apply negb_true_iff in F1, F2.
      destruct (H [] s g b t h c eq_refl) as [E|E]; [congruence|].
      apply group_eqb_eq in E. congruence.
    + rewrite IH. split; intros H.
      * intros [|x a] s' g' b t h c E.
        -- injection E as -> -> ->. pose proof (find_none _ _ F (t, h)) as N. simpl in N.
           rewrite in_app_iff in N. specialize (N (or_intror (or_introl eq_refl))).
           apply andb_false_iff in N. destruct N as [N|N]; apply negb_false_iff in N; auto.
           right. apply group_eqb_eq. exact N.
        -- injection E as _ ->. eapply H. reflexivity.
      * intros a s' g' b t h c E. apply (H ((s, g) :: a) s' g' b t h c). simpl. rewrite E. reflexivity.
Qed.

(* Every group is supplied by one source at most, and the call's comes before the mpu's. *)
Lemma supplied_twice : forall s g h, supplies i s g -> supplies i s h -> g = h.
Proof. intros s g h X Y. apply group_at_iff in X, Y. congruence. Qed.

Lemma before_and_after : forall a s g b t h c,
  supplied_groups i = a ++ (s, g) :: b ++ (t, h) :: c -> ~ (t = Source_CALL_TP_GROUP /\ s = Source_MPU_TP_GROUP) /\
    s <> t.
Proof.
  intros a s g b t h c. unfold supplied_groups, given, groups. simpl.
  destruct (bind (input_call i) call_tp_group), (option_map mpu_tp_group (input_mpu i)),
    (bind (live_section i) section_tp_group), (input_mesh i); simpl; intros E;
  repeat match goal with
  | E : [] = ?a ++ _ :: _ |- _ => destruct a; discriminate
  | E : _ :: _ = ?a ++ _ :: _ |- _ => destruct a; simpl in E; injection E; clear E; intros
  end; subst; split; intuition congruence.
Qed.

Lemma group_identity_mismatch_iff :
  negb (is_nil (first_differing (supplied_groups i))) = true <->
  exists s g t h, supplies i s g /\ supplies i t h /\ g <> h /\ ~ excepted s t.
Proof.
  destruct (first_differing (supplied_groups i)) as [|x l] eqn:E; simpl.
  - split; [discriminate|]. intros (s & g & t & h & X & Y & N & O). exfalso.
    pose proof (proj1 (first_differing_nil _) E) as F. clear E.
    apply in_supplied_groups in X, Y. pose proof X as X'. pose proof Y as Y'.
    apply in_split in X'. destruct X' as (a & b & P).
    rewrite P in Y'. apply in_app_iff in Y'. destruct Y' as [Y'|[Y'|Y']].
    + apply in_split in Y'. destruct Y' as (a' & c & ->). rewrite <- app_assoc in P. simpl in P.
      destruct (F _ _ _ _ _ _ _ P) as [L|L]; [|congruence].
      apply left_to_p4_iff in L. apply O. right. tauto.
    + congruence.
    + apply in_split in Y'. destruct Y' as (a' & c & ->).
      destruct (F _ _ _ _ _ _ _ P) as [L|L]; [|congruence].
      apply left_to_p4_iff in L. apply O. left. tauto.
  - split; [intros _|reflexivity].
    assert (exists a s g b t h c, supplied_groups i = a ++ (s, g) :: b ++ (t, h) :: c /\
              left_to_p4 s t = false /\ g <> h) as (a & s & g & b & t & h & c & P & L & N).
    { assert (forall l0 : list (Source * G), first_differing l0 <> [] -> exists a s g b t h c,
        l0 = a ++ (s, g) :: b ++ (t, h) :: c /\ left_to_p4 s t = false /\ g <> h) as W.
      { clear. induction l0 as [|(s & g) l0 IH]; simpl; [congruence|].
        destruct (find _ l0) as [(t & h)|] eqn:F.
        - intros _. apply find_some in F. destruct F as [I F]. apply in_split in I. destruct I as (b & c & ->).
          simpl in F. apply andb_true_iff in F. destruct F as [F1 F2]. apply negb_true_iff in F1, F2.
          exists [], s, g, b, t, h, c. repeat split; auto. intros X. apply group_eqb_eq in X. congruence.
        - intros X. destruct (IH X) as (a & s' & g' & b & t & h & c & -> & L & N).
          exists ((s, g) :: a), s', g', b, t, h, c. auto. }
      apply W. congruence. }
    exists s, g, t, h. pose proof (before_and_after _ _ _ _ _ _ _ P) as [B _].
    repeat split; auto.
    + apply in_supplied_groups. rewrite P. apply in_app_iff. simpl. auto.
    + apply in_supplied_groups. rewrite P. apply in_app_iff. right. right. apply in_app_iff. simpl. auto.
    + intros [[-> ->]|[-> ->]].
      * pose proof (proj2 (left_to_p4_iff _ _) (conj eq_refl eq_refl)). congruence.
      * apply B. auto.
Qed.

Lemma size_invalid_iff : existsb invalid_size (given_sizes i) = true <->
  exists s n, gives_size i s n /\ n < 1 /\ ~ (s = Source_CONFIG_AUTOTP_SIZE /\ n = 0).
Proof.
  rewrite existsb_exists. split.
  - intros ((s & n) & I & H). apply andb_true_iff in H. simpl in H. destruct H as [H1 H2].
    exists s, n. rewrite <- in_given_sizes. repeat split; [exact I|lia|]. intros [-> ->]. discriminate.
  - intros (s & n & I & H & N). exists (s, n). rewrite in_given_sizes. split; [exact I|].
    unfold invalid_size. simpl. apply andb_true_iff. split; [lia|]. apply not_true_iff with (2 := N).
    apply true_and; [apply Source_eqb_eq | apply Z.eqb_eq].
Qed.

Lemma misfits_iff : negb (is_nil (misfits i)) = true <->
  exists s n t g, effective_is i s n /\ supplies i t g /\ size_of g <> n.
Proof.
  unfold misfits. destruct (effective_size i) as [(s & n)|] eqn:E.
  - rewrite not_is_nil_iff. split.
    + intros ((t & g) & I). apply filter_In in I. destruct I as [I H]. simpl in H.
      exists s, n, t, g. rewrite <- effective_size_iff, <- in_supplied_groups. repeat split; auto; lia.
    + intros (s' & n' & t & g & X & Y & N). apply effective_size_iff in X. rewrite E in X. injection X as <- <-.
      exists (t, g). apply filter_In. rewrite in_supplied_groups. split; [exact Y|]. simpl. lia.
  - split; [discriminate|]. intros (s & n & t & g & X & _). apply effective_size_iff in X. congruence.
Qed.

Lemma nothing_supplied_iff : is_nil (supplied_groups i) = true <-> forall t g, ~ supplies i t g.
Proof.
  rewrite is_nil_iff. split.
  - intros H t g X. apply (H (t, g)). apply in_supplied_groups. exact X.
  - intros H (t & g) X. apply (H t g). apply in_supplied_groups. exact X.
Qed.

(* 6.6: each of the ten predicates of the decision holds exactly when the sentence of section 4 does, for every
   input. *)
Theorem violated_exactly_when_section_four_says : forall code, violated i code = true <-> holds i code.
Proof.
  intros []; unfold violated, holds.
  - rewrite !andb_true_iff, !negb_true_iff, <- !not_true_iff_false, is_TPI_iff, is_CFG_iff, is_MPU_iff. tauto.
  - rewrite !andb_true_iff, !negb_true_iff, <- !not_true_iff_false, is_TPI_iff, is_TPG_iff, is_CFG_iff, is_MPU_iff.
    tauto.
  - apply true_and; [apply is_TPG_iff | apply is_MPU_iff].
  - apply true_and; [apply is_CFG_iff |]. rewrite is_nil_iff. split.
    + intros H s n X. apply (H (s, n)). apply in_given_sizes. exact X.
    + intros H (s & n) X. apply (H s n). apply in_given_sizes. exact X.
  - apply true_and; [apply in_scope_iff | apply size_invalid_iff].
  - apply true_and; [apply in_scope_iff |]. rewrite (differ_iff _ _ Z.eqb_eq).
    setoid_rewrite in_given_sizes. reflexivity.
  - apply true_and; [apply in_scope_iff |]. rewrite (differ_iff _ _ DType_eqb_eq).
    setoid_rewrite in_given_dtypes. reflexivity.
  - apply true_and; [apply in_scope_iff | apply group_identity_mismatch_iff].
  - apply true_and; [apply in_scope_iff | apply misfits_iff].
  - destruct (effective_size i) as [(s & n)|] eqn:E.
    + unfold created. rewrite !andb_true_iff, is_CFG_iff, nothing_supplied_iff. split.
      * intros (((X & Y) & P) & N). repeat split; auto. exists s, n. rewrite <- effective_size_iff.
        repeat split; auto; [lia|]. apply not_dividing_iff in N; [exact N|lia].
      * intros (X & Y & s' & n' & Z & P & N). apply effective_size_iff in Z. rewrite E in Z. injection Z as <- <-.
        repeat split; auto; [lia|]. apply not_dividing_iff; assumption.
    + split; [discriminate|]. intros (_ & _ & s & n & X & _). apply effective_size_iff in X. congruence.
Qed.

End Predicates.
