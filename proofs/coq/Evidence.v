(* Section 6, item 6: the evidence of a violation is what section 4 blames, all of it and nothing else. *)
From Coq Require Import ZArith List Bool Lia.
From TPInit Require Import Vocabulary Table Prose Formulations Contract Reflection Meaning Violations.
Import ListNotations.
Open Scope Z_scope.

Section OneInput.
Context {G D C : Type} {GG : Groups G} (i : input G D C).

Definition a_given_size (s : Source) (v : value G) : Prop := exists n, v = SizeValue n /\ gives_size i s n.
Definition the_effective_size (s : Source) (v : value G) : Prop := exists n, v = SizeValue n /\ effective_is i s n.

(* What each violation that holds must show. GROUP_IDENTITY_MISMATCH shows one pair only, see the theorem after. *)
Definition blames (code : ViolationCode) (s : Source) (v : value G) : Prop :=
  match code with
  | ViolationCode_NO_TP_INTENT | ViolationCode_SIZE_MISSING => False
  | ViolationCode_NO_GROUP_SOURCE | ViolationCode_SIZE_MISMATCH => a_given_size s v
  | ViolationCode_GROUP_AND_MPU =>
    exists g, v = GroupValue g /\ supplies i s g /\ In s [Source_CALL_TP_GROUP; Source_MPU_TP_GROUP]
  | ViolationCode_SIZE_INVALID =>
    exists n, v = SizeValue n /\ gives_size i s n /\ n < 1 /\ ~ (s = Source_CONFIG_AUTOTP_SIZE /\ n = 0)
  | ViolationCode_DTYPE_MISMATCH => exists d, v = DTypeValue d /\ gives_dtype i s d
  | ViolationCode_GROUP_IDENTITY_MISMATCH => exists g, v = GroupValue g /\ supplies i s g
  | ViolationCode_GROUP_SIZE_MISMATCH =>
    the_effective_size s v \/
    exists g t n, v = GroupValue g /\ supplies i s g /\ effective_is i t n /\ size_of g <> n
  | ViolationCode_SIZE_NOT_DIVIDING_WORLD =>
    the_effective_size s v \/ s = Source_WORLD_SIZE /\ v = SizeValue (input_world_size i)
  end.

Lemma in_size_evidence : forall l s v,
  In (s, v) (as_evidence (G := G) SizeValue l) <-> exists n, v = SizeValue n /\ In (s, n) l.
Proof.
  intros l s v. unfold as_evidence. rewrite in_map_iff. split.
  - intros ((t & n) & E & I). injection E as <- <-. eauto.
  - intros (n & -> & I). exists (s, n). auto.
Qed.

Lemma in_group_evidence : forall l s v,
  In (s, v) (as_evidence (G := G) GroupValue l) <-> exists g, v = GroupValue g /\ In (s, g) l.
Proof.
  intros l s v. unfold as_evidence. rewrite in_map_iff. split.
  - intros ((t & g) & E & I). injection E as <- <-. eauto.
  - intros (g & -> & I). exists (s, g). auto.
Qed.

Lemma in_effective_evidence : forall s v,
  In (s, v) (match effective_size i with Some x => [as_value (G := G) SizeValue x] | None => [] end) <->
  the_effective_size s v.
Proof.
  intros s v. unfold the_effective_size. setoid_rewrite <- effective_size_iff.
  destruct (effective_size i) as [(t & n)|]; simpl; split.
  - intros [E|[]]. injection E as <- <-. eauto.
  - intros (m & -> & E). injection E as <- <-. auto.
  - intros [].
  - intros (m & _ & E). discriminate.
Qed.

Lemma first_two_groups : violated i ViolationCode_GROUP_AND_MPU = true -> forall s g,
  In (s, g) (firstn 2 (supplied_groups i)) <->
  supplies i s g /\ In s [Source_CALL_TP_GROUP; Source_MPU_TP_GROUP].
Proof.
  intros V s g. rewrite <- group_at_iff. apply andb_true_iff in V. destruct V as [T M].
  destruct (proj1 (is_some_iff _) T) as [c E]. destruct (proj1 (is_some_iff _) M) as [m F].
  unfold supplied_groups, given, groups. simpl. rewrite E, F. simpl. split.
  - intros [I|[I|[]]]; injection I as <- <-; simpl; [rewrite E | rewrite F]; auto.
  - intros [I [<-|[<-|[]]]]; simpl in I; [rewrite E in I | rewrite F in I]; simpl in I; injection I as <-; auto.
Qed.

(* 6.6: what the evidence of a violation names is given, by the source that it names. *)
Theorem evidence_is_what_is_given : forall code, violated i code = true ->
  forall s v, In (s, v) (evidence i code) -> blames code s v.
Proof.
  assert (forall l : list (Source * G), incl (first_differing l) l) as F.
  { induction l as [|x l IH]; simpl; [apply incl_refl|]. destruct (find _ l) as [y|] eqn:E.
    - apply find_some in E. destruct E as [E _]. intros z [<-|[<-|[]]]; simpl; auto.
    - apply incl_tl. exact IH. }
  intros code V s v I. destruct code; unfold evidence in I; unfold blames; try contradiction.
  - apply in_size_evidence in I. destruct I as (n & -> & I). apply in_given_sizes in I. exists n. auto.
  - apply in_group_evidence in I. destruct I as (g & -> & I). apply (first_two_groups V) in I. exists g. tauto.
  - apply in_size_evidence in I. destruct I as (n & -> & I). apply filter_In in I. destruct I as [I N].
    apply in_given_sizes in I. exists n. split; [reflexivity|]. apply andb_true_iff in N. simpl in N.
      destruct N as [N O].
    repeat split; auto; [lia|]. intros [-> ->]. discriminate.
  - apply in_size_evidence in I. destruct I as (n & -> & I). apply in_given_sizes in I. exists n. auto.
  - apply in_map_iff in I. destruct I as ((t & d) & E & I). injection E as <- <-. apply in_given_dtypes in I. eauto.
  - apply in_group_evidence in I. destruct I as (g & -> & I). exists g. split; [reflexivity|].
    apply in_supplied_groups. apply F. exact I.
  - apply in_app_iff in I. destruct I as [I|I]; [left; apply in_effective_evidence; exact I|]. right.
    apply in_group_evidence in I. destruct I as (g & -> & I). unfold misfits in I.
    destruct (effective_size i) as [(t & n)|] eqn:E; [|contradiction]. apply filter_In in I. destruct I as [I N].
    exists g, t, n. rewrite <- effective_size_iff, <- in_supplied_groups. simpl in N. repeat split; auto; lia.
  - apply in_app_iff in I. destruct I as [I|[I|[]]]; [left; apply in_effective_evidence; exact I|].
    injection I as <- <-. auto.
Qed.

(* 6.6: the evidence of a violation names all that section 4 blames; of differing groups it names one pair. *)
Theorem evidence_is_all_of_it : forall code, violated i code = true ->
  code <> ViolationCode_GROUP_IDENTITY_MISMATCH -> forall s v, blames code s v -> In (s, v) (evidence i code).
Proof.
  intros code V N s v B. destruct code; unfold blames in B; unfold evidence; try contradiction; try congruence.
  - destruct B as (n & -> & B). apply in_size_evidence. exists n. rewrite in_given_sizes. auto.
  - destruct B as (g & -> & B). apply in_group_evidence. exists g. rewrite (first_two_groups V). auto.
  - destruct B as (n & -> & B & L & O). apply in_size_evidence. exists n. split; [reflexivity|]. apply filter_In.
    rewrite in_given_sizes. split; [exact B|]. unfold invalid_size. simpl. apply andb_true_iff. split; [lia|].
    apply (not_true_iff _ _ (true_and _ _ _ _ (Source_eqb_eq _ _) (Z.eqb_eq _ _))). exact O.
  - destruct B as (n & -> & B). apply in_size_evidence. exists n. rewrite in_given_sizes. auto.
  - destruct B as (d & -> & B). apply in_map_iff. exists (s, d). rewrite in_given_dtypes. auto.
  - apply in_app_iff. destruct B as [B|(g & t & n & -> & B & E & O)].
    + left. apply in_effective_evidence. exact B.
    + right. apply in_group_evidence. exists g. split; [reflexivity|]. unfold misfits.
      apply effective_size_iff in E. rewrite E. apply filter_In. rewrite in_supplied_groups. split; [exact B|].
        simpl. lia.
  - apply in_app_iff. destruct B as [B|[-> ->]]; [left; apply in_effective_evidence; exact B | right; simpl; auto].
Qed.

(* 6.6: the evidence of GROUP_IDENTITY_MISMATCH is two supplied groups that differ and that P4 does not decide. *)
Theorem differing_groups_are_shown : violated i ViolationCode_GROUP_IDENTITY_MISMATCH = true ->
  exists s g t h, evidence i ViolationCode_GROUP_IDENTITY_MISMATCH = [(s, GroupValue g); (t, GroupValue h)] /\
    supplies i s g /\ supplies i t h /\ g <> h /\ ~ excepted s t.
Proof.
  intros V. unfold violated in V. apply andb_true_iff in V. destruct V as [_ V]. unfold evidence.
  assert (forall l : list (Source * G), first_differing l <> [] -> exists a s g b t h c,
    l = a ++ (s, g) :: b ++ (t, h) :: c /\ first_differing l = [(s, g); (t, h)] /\ left_to_p4 s t = false /\
      g <> h) as W.
  { clear. induction l as [|(s & g) l IH]; simpl; [congruence|].
    destruct (find _ l) as [(t & h)|] eqn:F.
    - intros _. apply find_some in F. destruct F as [I F]. apply in_split in I. destruct I as (b & c & ->).
      simpl in F. apply andb_true_iff in F. destruct F as [F1 F2]. apply negb_true_iff in F1, F2.
      exists [], s, g, b, t, h, c. repeat split; auto. intros X. apply group_eqb_eq in X. congruence.
    - intros X. destruct (IH X) as (a & s' & g' & b & t & h & c & -> & E & L & N).
      exists ((s, g) :: a), s', g', b, t, h, c. auto. }
  destruct (W (supplied_groups i)) as (a & s & g & b & t & h & c & P & E & L & N).
  { intros X. rewrite X in V. discriminate. }
  exists s, g, t, h. rewrite E. pose proof (before_and_after i _ _ _ _ _ _ _ P) as [B _]. repeat split; auto.
  - apply in_supplied_groups. rewrite P. apply in_app_iff. simpl. auto.
  - apply in_supplied_groups. rewrite P. apply in_app_iff. right. right. apply in_app_iff. simpl. auto.
  - intros [[-> ->]|[-> ->]]; [discriminate L | apply B; auto].
Qed.

End OneInput.
