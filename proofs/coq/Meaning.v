(* Section 4 once more, as propositions over the raw inputs: what is given, and when each violation holds. Nothing in
   [holds] uses the definitions of Contract.v that it is compared with. *)
From Coq Require Import ZArith List Bool Lia.
From TPInit Require Import Vocabulary Table Prose Formulations Contract Reflection.
Import ListNotations.
Open Scope Z_scope.

Section Meaning.
Context {G D C : Type} {GG : Groups G} (i : input G D C).

(* D2: the one way in which a section is present and CFG is false. *)
Definition switched_off (s : section G C) : Prop :=
  section_autotp_size s = Some 0 /\ section_tp_size s = None /\ input_call i = None.

(* The section, where CFG: its fields exist only then. *)
Definition cfg_section (s : section G C) : Prop := input_section i = Some s /\ ~ switched_off s.

Definition TPI : Prop := exists c, input_call i = Some c.
Definition TPG : Prop := exists c g, input_call i = Some c /\ call_tp_group c = Some g.
Definition CFG : Prop := exists s, cfg_section s.
Definition MPU : Prop := exists m, input_mpu i = Some m.
Definition scope : Prop := TPI \/ CFG.

Inductive gives_size : Source -> Z -> Prop :=
  | size_of_call c : input_call i = Some c -> gives_size Source_CALL_TP_SIZE (call_tp_size c)
  | size_of_config s n : cfg_section s -> section_autotp_size s = Some n -> gives_size Source_CONFIG_AUTOTP_SIZE n
  | size_of_alias s n : cfg_section s -> section_tp_size s = Some n -> gives_size Source_CONFIG_TP_SIZE n.

Inductive gives_dtype : Source -> DType -> Prop :=
  | dtype_of_call c : input_call i = Some c -> gives_dtype Source_CALL_DTYPE (call_dtype c)
  | dtype_of_config s d : cfg_section s -> section_dtype s = Some d -> gives_dtype Source_CONFIG_DTYPE d
  | dtype_of_precision d : input_precision i = Some d -> gives_dtype Source_PRECISION d.

Inductive supplies : Source -> G -> Prop :=
  | group_of_call c g : input_call i = Some c -> call_tp_group c = Some g -> supplies Source_CALL_TP_GROUP g
  | group_of_mpu m : input_mpu i = Some m -> supplies Source_MPU_TP_GROUP (mpu_tp_group m)
  | group_of_config s g : cfg_section s -> section_tp_group s = Some g -> supplies Source_CONFIG_TP_GROUP g
  | group_of_mesh g : input_mesh i = Some g -> supplies Source_MESH_TP_GROUP g.

Definition silent (s : Source) : Prop := forall n, ~ gives_size s n.

Definition effective_is (s : Source) (n : Z) : Prop :=
  gives_size s n /\
  (s = Source_CONFIG_AUTOTP_SIZE \/
   s = Source_CONFIG_TP_SIZE /\ silent Source_CONFIG_AUTOTP_SIZE \/
   s = Source_CALL_TP_SIZE /\ silent Source_CONFIG_AUTOTP_SIZE /\ silent Source_CONFIG_TP_SIZE).

(* The pair that GROUP_IDENTITY_MISMATCH leaves to GROUP_AND_MPU, in either order. *)
Definition excepted (one other : Source) : Prop :=
  one = Source_CALL_TP_GROUP /\ other = Source_MPU_TP_GROUP \/
  one = Source_MPU_TP_GROUP /\ other = Source_CALL_TP_GROUP.

(* The table of section 4, sentence by sentence. *)
Definition holds (code : ViolationCode) : Prop :=
  match code with
  | ViolationCode_NO_TP_INTENT => ~ TPI /\ ~ CFG /\ ~ MPU
  | ViolationCode_NO_GROUP_SOURCE => TPI /\ ~ TPG /\ ~ CFG /\ ~ MPU
  | ViolationCode_GROUP_AND_MPU => TPG /\ MPU
  | ViolationCode_SIZE_MISSING => CFG /\ (forall s n, ~ gives_size s n)
  | ViolationCode_SIZE_INVALID =>
    scope /\ exists s n, gives_size s n /\ n < 1 /\ ~ (s = Source_CONFIG_AUTOTP_SIZE /\ n = 0)
  | ViolationCode_SIZE_MISMATCH => scope /\ exists s n t m, gives_size s n /\ gives_size t m /\ n <> m
  | ViolationCode_DTYPE_MISMATCH => scope /\ exists s d t e, gives_dtype s d /\ gives_dtype t e /\ d <> e
  | ViolationCode_GROUP_IDENTITY_MISMATCH =>
    scope /\ exists s g t h, supplies s g /\ supplies t h /\ g <> h /\ ~ excepted s t
  | ViolationCode_GROUP_SIZE_MISMATCH =>
    scope /\ exists s n t g, effective_is s n /\ supplies t g /\ size_of g <> n
  | ViolationCode_SIZE_NOT_DIVIDING_WORLD =>
    CFG /\ (forall t g, ~ supplies t g) /\
    exists s n, effective_is s n /\ 1 <= n /\ ~ (n | input_world_size i)
  end.

(* --- the facts and what is given --- *)

Lemma live_section_iff : forall s, live_section i = Some s <-> cfg_section s.
Proof.
  intros s. unfold live_section, section_disabled, cfg_section, switched_off.
  assert (forall P : Prop, ~ P -> (input_section i = Some s <-> input_section i = Some s /\ ~ P)) as W by tauto.
  destruct (input_section i) as [t|]; [|split; [discriminate | intros [E _]; discriminate]].
  destruct (input_call i) as [c|]; [apply W; intros (_ & _ & E); discriminate|].
  destruct (section_autotp_size t) as [n|] eqn:A;
    [|split; [intros E; injection E as <-; split; [reflexivity | intros (F & _); congruence] | tauto]].
  destruct (section_tp_size t) as [m|] eqn:B;
    [split; [intros E; injection E as <-; split; [reflexivity | intros (_ & F & _); congruence] | tauto]|].
  destruct (Z.eqb_spec n 0) as [->|N].
  - split; [discriminate|]. intros [E O]. injection E as ->. exfalso. apply O. auto.
  - split; [intros E; injection E as <-; split; [reflexivity | intros (F & _); congruence] | tauto].
Qed.

Lemma is_TPI_iff : is_TPI (facts_of i) = true <-> TPI.
Proof. apply is_some_iff. Qed.

Lemma is_MPU_iff : is_MPU (facts_of i) = true <-> MPU.
Proof. apply is_some_iff. Qed.

Lemma is_CFG_iff : is_CFG (facts_of i) = true <-> CFG.
Proof. unfold CFG. setoid_rewrite <- live_section_iff. apply is_some_iff. Qed.

Lemma is_TPG_iff : is_TPG (facts_of i) = true <-> TPG.
Proof.
  unfold TPG, facts_of, is_TPG. rewrite is_some_iff. destruct (input_call i) as [c|]; simpl; split.
  - intros [g E]. eauto.
  - intros (d & g & E & F). injection E as ->. eauto.
  - intros [g E]. discriminate.
  - intros (d & g & E & _). discriminate.
Qed.

Lemma in_scope_iff : in_scope i = true <-> scope.
Proof. unfold in_scope, scope. rewrite orb_true_iff, is_TPI_iff, is_CFG_iff. reflexivity. Qed.

Ltac given_by_section :=
  match goal with
  | |- bind _ _ = Some _ <-> _ => destruct (live_section i) as [s|] eqn:L; simpl; split;
    [ intros E; econstructor; [apply live_section_iff; exact L | exact E]
    | intros E; inversion E; subst;
      match goal with H : cfg_section _ |- _ => apply live_section_iff in H; rewrite L in H; injection H as -> end; auto
    | discriminate
    | intros E; inversion E; subst;
      match goal with H : cfg_section _ |- _ => apply live_section_iff in H; rewrite L in H; discriminate end ]
  end.

Ltac given_by_nobody := split; [discriminate | intros E; inversion E].

Lemma size_at_iff : forall s n, size_at i s = Some n <-> gives_size s n.
Proof.
  intros [] n; simpl; try solve [given_by_nobody]; try given_by_section.
  destruct (input_call i) as [c|] eqn:E; simpl; split; intros H; try discriminate.
  - injection H as <-. constructor. exact E.
  - inversion H; subst. congruence.
  - inversion H; subst. congruence.
Qed.

Lemma dtype_at_iff : forall s d, dtype_at i s = Some d <-> gives_dtype s d.
Proof.
  intros [] d; simpl; try solve [given_by_nobody]; try given_by_section.
  - destruct (input_call i) as [c|] eqn:E; simpl; split; intros H; try discriminate.
    + injection H as <-. constructor. exact E.
    + inversion H; subst. congruence.
    + inversion H; subst. congruence.
  - split; intros H; [constructor; exact H | inversion H; subst; assumption].
Qed.

Lemma group_at_iff : forall s g, group_at i s = Some g <-> supplies s g.
Proof.
  intros [] g; simpl; try solve [given_by_nobody]; try given_by_section.
  - destruct (input_call i) as [c|] eqn:E; simpl; split; intros H; try discriminate.
    + econstructor; eassumption.
    + inversion H; subst. congruence.
    + inversion H; subst. congruence.
  - destruct (input_mpu i) as [m|] eqn:E; simpl; split; intros H; try discriminate.
    + injection H as <-. constructor. exact E.
    + inversion H; subst. congruence.
    + inversion H; subst. congruence.
  - split; intros H; [constructor; exact H | inversion H; subst; assumption].
Qed.

Lemma in_given_sizes : forall s n, In (s, n) (given_sizes i) <-> gives_size s n.
Proof.
  intros s n. unfold given_sizes. rewrite in_given, size_at_iff. split; [tauto|].
  intros H. split; [|exact H]. inversion H; simpl; tauto.
Qed.

Lemma in_given_dtypes : forall s d, In (s, d) (given_dtypes i) <-> gives_dtype s d.
Proof.
  intros s d. unfold given_dtypes. rewrite in_given, dtype_at_iff. split; [tauto|].
  intros H. split; [|exact H]. inversion H; simpl; tauto.
Qed.

Lemma in_supplied_groups : forall s g, In (s, g) (supplied_groups i) <-> supplies s g.
Proof.
  intros s g. unfold supplied_groups. rewrite in_given, group_at_iff. split; [tauto|].
  intros H. split; [|exact H]. inversion H; simpl; tauto.
Qed.

Lemma silent_iff : forall s, size_at i s = None <-> silent s.
Proof.
  intros s. unfold silent. split.
  - intros E n H. apply size_at_iff in H. congruence.
  - intros H. destruct (size_at i s) eqn:E; [|reflexivity]. apply size_at_iff in E. contradiction (H _ E).
Qed.

Lemma effective_size_iff : forall s n, effective_size i = Some (s, n) <-> effective_is s n.
Proof.
  intros s n. unfold effective_size, effective_is. rewrite <- !silent_iff, <- size_at_iff.
  destruct (size_at i Source_CONFIG_AUTOTP_SIZE) as [a|] eqn:A.
  - split; [intros E; injection E as <- <-; auto | intros (E & [->|[(_ & F)|(_ & F & _)]]); congruence].
  - destruct (size_at i Source_CONFIG_TP_SIZE) as [b|] eqn:B.
    + split; [intros E; injection E as <- <-; auto | intros (E & [->|[(-> & _)|(_ & _ & F)]]); congruence].
    + destruct (size_at i Source_CALL_TP_SIZE) as [c|] eqn:K; simpl; split; try discriminate.
      * intros E. injection E as <- <-. auto 6.
      * intros (E & [->|[(-> & _)|(-> & _)]]); congruence.
      * intros (E & [->|[(-> & _)|(-> & _)]]); congruence.
Qed.

Lemma effective_size_none : effective_size i = None <-> forall s n, ~ gives_size s n.
Proof.
  unfold effective_size. split.
  - intros E s n H. pose proof (proj2 (size_at_iff s n) H) as F.
    destruct (size_at i Source_CONFIG_AUTOTP_SIZE) eqn:A; [discriminate|].
    destruct (size_at i Source_CONFIG_TP_SIZE) eqn:B; [discriminate|].
    destruct (size_at i Source_CALL_TP_SIZE) eqn:K; [discriminate|].
    inversion H; subst; congruence.
  - intros N. pose proof (fun s => proj2 (silent_iff s) (N s)) as S. rewrite !S. reflexivity.
Qed.

End Meaning.
