(* Section 6, item 7: nothing is bounded, and groups are only compared and measured. *)
From Coq Require Import ZArith List Bool Lia.
From TPInit Require Import Vocabulary Table Prose Formulations Contract Reflection Meaning Violations Concrete
  Rows Equivalence Merge Safety.
Import ListNotations.
Open Scope Z_scope.

(* A section with a size of its own, and nothing else. *)
Definition section_of_size (n : Z) : option (section (Z * Z) unit) := Some (Section_ (Some n) None None None tt).

(* 6.7: every size from 1 on, however large, starts AutoTP in every world that it divides, with created groups. *)
Theorem every_size_can_start : forall n k, 1 <= n -> 1 <= k ->
  let i := Input (D := unit) (k * n) None (section_of_size n) None None None in
  well_typed i = true /\ starts i = true /\ decision_tp_size (resolve i) = Some (Source_CONFIG_AUTOTP_SIZE, Some n) /\
  decision_tp_group (resolve i) = Some (Source_CREATED, None).
Proof.
  intros n k N K i.
  assert (section_disabled i = false) as O by (cbn; apply Z.eqb_neq; lia).
  assert (live_section i = section_of_size n) as L by (unfold live_section; rewrite O; reflexivity).
  assert (facts_of i = Facts false false true false) as F by (unfold facts_of; rewrite L; reflexivity).
  assert (given_sizes i = [(Source_CONFIG_AUTOTP_SIZE, n)]) as Z.
  { unfold given_sizes, given, size_at. rewrite L. reflexivity. }
  assert (effective_size i = Some (Source_CONFIG_AUTOTP_SIZE, n)) as E.
  { unfold effective_size, size_at. rewrite L. reflexivity. }
  assert (supplied_groups i = []) as G by (unfold supplied_groups, given, group_at; rewrite L; reflexivity).
  assert (given_dtypes i = []) as T by (unfold given_dtypes, given, dtype_at; rewrite L; reflexivity).
  assert (violations i = []) as V.
  { apply no_violation_iff. intros code. unfold violated, in_scope, misfits, created. rewrite F, Z, E, G, T.
    destruct code; try reflexivity; cbn.
    - unfold invalid_size. cbn. replace (n <? 1) with false by (symmetry; apply Z.ltb_ge; lia). reflexivity.
    - unfold differ. cbn. rewrite Z.eqb_refl. reflexivity.
    - replace (1 <=? n) with true by (symmetry; apply Z.leb_le; lia). rewrite Z.mod_mul by lia. reflexivity. }
  split; [|split; [|split]].
  - unfold well_typed. cbn [input_world_size i]. simpl. rewrite andb_true_r. apply Z.leb_le. nia.
  - unfold starts. rewrite outcome_of_the_decision, V, F. reflexivity.
  - unfold resolve. rewrite V, E. reflexivity.
  - unfold resolve. rewrite V. simpl. unfold effective_group, row_of. rewrite F. simpl.
    rewrite L. reflexivity.
Qed.

(* --- renaming groups --- *)

Section Renaming.
Context {G H D C : Type} {GG : Groups G} {GH : Groups H}.
Variable f : G -> H.
Hypothesis keeps_identity : forall a b, group_eqb (f a) (f b) = group_eqb a b.
Hypothesis keeps_size : forall a, size_of (f a) = size_of a.

Definition rename_call (c : call G) : call H := Call (call_tp_size c) (call_dtype c) (option_map f (call_tp_group c)).
Definition rename_section (s : section G C) : section H C :=
  Section_ (section_autotp_size s) (section_tp_size s) (section_dtype s) (option_map f (section_tp_group s))
    (section_carried s).
Definition rename_mpu (m : mpu G D) : mpu H D := Mpu (f (mpu_tp_group m)) (mpu_dp_group m).
Definition rename_input (i : input G D C) : input H D C :=
  Input (input_world_size i) (option_map rename_call (input_call i)) (option_map rename_section (input_section i))
    (input_precision i) (option_map rename_mpu (input_mpu i)) (option_map f (input_mesh i)).
Definition rename_value (v : value G) : value H :=
  match v with SizeValue n => SizeValue n | DTypeValue d => DTypeValue d | GroupValue g => GroupValue (f g) end.
Definition rename_given (x : Source * G) : Source * H := (fst x, f (snd x)).
Definition rename_evidence (x : Source * value G) : Source * value H := (fst x, rename_value (snd x)).
Definition rename_effective (e : effective G) : effective H := option_map (fun x => (fst x, option_map f (snd x))) e.
Definition rename_decision (d : decision G D C) : decision H D C :=
  Decision (decision_row d) (decision_outcome d) (decision_tp_size d) (decision_dtype d)
    (rename_effective (decision_tp_group d))
    (map (fun v => (fst v, map rename_evidence (snd v))) (decision_violations d))
    (decision_section_disabled d) (decision_world_size d) (decision_dp_group d) (decision_carried d).

Variable i : input G D C.
Let j : input H D C := rename_input i.

Lemma renamed_disabled : section_disabled j = section_disabled i.
Proof. unfold section_disabled, j. simpl. destruct (input_section i), (input_call i); reflexivity. Qed.

Lemma renamed_live : live_section j = option_map rename_section (live_section i).
Proof. unfold live_section. rewrite renamed_disabled. destruct (section_disabled i); reflexivity. Qed.

Lemma renamed_facts : facts_of j = facts_of i.
Proof.
  unfold facts_of. rewrite renamed_live. unfold j. simpl.
  destruct (input_call i) as [[? ? []]|], (live_section i), (input_mpu i); reflexivity.
Qed.

Lemma renamed_size_at : forall s, size_at j s = size_at i s.
Proof.
  intros []; unfold size_at; try reflexivity; try (rewrite renamed_live; destruct (live_section i); reflexivity).
  unfold j. simpl. destruct (input_call i); reflexivity.
Qed.

Lemma renamed_dtype_at : forall s, dtype_at j s = dtype_at i s.
Proof.
  intros []; unfold dtype_at; try reflexivity; try (rewrite renamed_live; destruct (live_section i); reflexivity).
  unfold j. simpl. destruct (input_call i); reflexivity.
Qed.

Lemma renamed_group_at : forall s, group_at j s = option_map f (group_at i s).
Proof.
  intros []; unfold group_at; try reflexivity; try (rewrite renamed_live; destruct (live_section i); reflexivity);
    unfold j; simpl.
  - destruct (input_call i); reflexivity.
  - destruct (input_mpu i); reflexivity.
Qed.

Lemma renamed_sizes : given_sizes j = given_sizes i.
Proof. unfold given_sizes, given. apply flat_map_ext. intros s. rewrite renamed_size_at. reflexivity. Qed.

Lemma renamed_dtypes : given_dtypes j = given_dtypes i.
Proof. unfold given_dtypes, given. apply flat_map_ext. intros s. rewrite renamed_dtype_at. reflexivity. Qed.

Lemma renamed_groups : supplied_groups j = map rename_given (supplied_groups i).
Proof.
  unfold supplied_groups, given. induction groups as [|s l IH]; simpl; [reflexivity|].
  rewrite renamed_group_at, IH, map_app. destruct (group_at i s); reflexivity.
Qed.

Lemma renamed_effective_size : effective_size j = effective_size i.
Proof. unfold effective_size. rewrite !renamed_size_at. reflexivity. Qed.

Lemma renamed_effective_dtype : effective_dtype j = effective_dtype i.
Proof. unfold effective_dtype. rewrite !renamed_dtype_at. reflexivity. Qed.

Lemma renamed_effective_group : effective_group j = rename_effective (effective_group i).
Proof.
  unfold effective_group, rename_effective. rewrite renamed_facts, !renamed_group_at.
  destruct (option_map row_group_from (row_of (facts_of i))) as [[]|]; try reflexivity.
  - destruct (group_at i Source_CALL_TP_GROUP); reflexivity.
  - destruct (group_at i Source_MPU_TP_GROUP); reflexivity.
  - destruct (group_at i Source_CONFIG_TP_GROUP), (group_at i Source_MESH_TP_GROUP); reflexivity.
Qed.

Lemma renamed_find : forall p q l, (forall x, q (rename_given x) = p x) ->
  find q (map rename_given l) = option_map rename_given (find p l).
Proof. intros p q l E. induction l as [|x l IH]; simpl; [reflexivity|]. rewrite E, IH. destruct (p x); reflexivity. Qed.

Lemma renamed_first_differing : forall l, first_differing (map rename_given l) = map rename_given (first_differing l).
Proof.
  induction l as [|x l IH]; simpl; [reflexivity|].
  rewrite (renamed_find (fun y => negb (left_to_p4 (fst x) (fst y)) && negb (group_eqb (snd x) (snd y)))).
  - destruct (find _ l); simpl; [reflexivity | exact IH].
  - intros y. simpl. rewrite keeps_identity. reflexivity.
Qed.

Lemma renamed_misfits : misfits j = map rename_given (misfits i).
Proof.
  unfold misfits. rewrite renamed_effective_size, renamed_groups. destruct (effective_size i) as [(s & n)|];
    [|reflexivity].
  induction (supplied_groups i) as [|x l IH]; simpl; [reflexivity|]. rewrite keeps_size, IH.
  destruct (size_of (snd x) =? n); reflexivity.
Qed.

Lemma is_nil_map : forall {A B} (g : A -> B) l, is_nil (map g l) = is_nil l.
Proof. intros A B g []; reflexivity. Qed.

Lemma renamed_violated : forall code, violated j code = violated i code.
Proof.
  intros code. unfold violated, in_scope, created.
  rewrite renamed_facts, renamed_sizes, renamed_dtypes, renamed_groups, renamed_effective_size, renamed_misfits,
    renamed_first_differing, !is_nil_map. reflexivity.
Qed.

Lemma renamed_violations : violations j = violations i.
Proof. unfold violations. apply filter_ext. exact renamed_violated. Qed.

Lemma renamed_group_values : forall l,
  as_evidence GroupValue (map rename_given l) = map rename_evidence (as_evidence GroupValue l).
Proof. intros l. unfold as_evidence. rewrite !map_map. apply map_ext. reflexivity. Qed.

Lemma renamed_size_values : forall l : list (Source * Z),
  as_evidence SizeValue l = map rename_evidence (as_evidence SizeValue l).
Proof. intros l. unfold as_evidence. rewrite map_map. apply map_ext. reflexivity. Qed.

Lemma renamed_dtype_values : forall l : list (Source * DType),
  as_evidence DTypeValue l = map rename_evidence (as_evidence DTypeValue l).
Proof. intros l. unfold as_evidence. rewrite map_map. apply map_ext. reflexivity. Qed.

Lemma renamed_evidence : forall code, evidence j code = map rename_evidence (evidence i code).
Proof.
  intros code. unfold evidence. rewrite renamed_sizes, renamed_dtypes, renamed_groups, renamed_effective_size,
    renamed_misfits, renamed_first_differing, firstn_map.
  destruct code; rewrite ?map_app; try reflexivity; try apply renamed_size_values; try apply renamed_dtype_values;
    try apply renamed_group_values.
  - rewrite renamed_group_values. destruct (effective_size i); reflexivity.
  - destruct (effective_size i); reflexivity.
Qed.

(* 6.7: groups are an uninterpreted sort: replacing every group by another one, of any type, changes nothing in the
   decision but the groups in it, if equal groups stay equal, different ones different, and sizes the same. *)
Theorem groups_are_only_compared_and_measured : resolve (rename_input i) = rename_decision (resolve i).
Proof.
  fold j. unfold resolve, rename_decision. simpl. rewrite renamed_violations, renamed_facts, renamed_disabled,
    renamed_effective_size, renamed_effective_dtype, renamed_effective_group, renamed_live.
  f_equal.
  - destruct (is_nil (violations i)); reflexivity.
  - rewrite map_map. apply map_ext. intros code. simpl. rewrite renamed_evidence. reflexivity.
  - unfold j. simpl. destruct (input_mpu i); reflexivity.
  - destruct (live_section i); reflexivity.
Qed.

End Renaming.
