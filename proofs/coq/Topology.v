(* Section 6, item 8: the topology, for every world size and every TP size that divides it. *)
From Coq Require Import ZArith List Bool Lia Permutation.
From TPInit Require Import Ranges.
Import ListNotations.
Open Scope Z_scope.

(* The definitions of runtime/groups/topology.py, with Z for int and lists for tuples. *)
Definition tp_rank (rank tp_size : Z) : Z := rank mod tp_size.
Definition dp_rank (rank tp_size : Z) : Z := rank / tp_size.
Definition rank_at (dp_rank tp_rank tp_size : Z) : Z := dp_rank * tp_size + tp_rank.
Definition dp_size (world_size tp_size : Z) : Z := world_size / tp_size.
Definition tp_group (index tp_size : Z) : list Z :=
  map (fun position => rank_at index position tp_size) (range tp_size).
Definition dp_group (position world_size tp_size : Z) : list Z :=
  map (fun index => rank_at index position tp_size) (range (dp_size world_size tp_size)).
Definition tp_groups (world_size tp_size : Z) : list (list Z) :=
  map (fun index => tp_group index tp_size) (range (dp_size world_size tp_size)).
Definition dp_groups (world_size tp_size : Z) : list (list Z) :=
  map (fun position => dp_group position world_size tp_size) (range tp_size).

Section OneWorld.
Variables world_size tp_size : Z.
Hypothesis positive : 1 <= tp_size.
Hypothesis world_positive : 1 <= world_size.
Hypothesis divides : (tp_size | world_size).

Lemma world_is_a_product : world_size = dp_size world_size tp_size * tp_size.
Proof.
  unfold dp_size. destruct divides as [k ->]. rewrite Z.div_mul by lia. reflexivity.
Qed.

Lemma dp_size_positive : 1 <= dp_size world_size tp_size.
Proof. pose proof world_is_a_product. nia. Qed.

Lemma place_of_rank_at : forall d t, 0 <= t < tp_size ->
  dp_rank (rank_at d t tp_size) tp_size = d /\ tp_rank (rank_at d t tp_size) tp_size = t.
Proof.
  intros d t B. unfold dp_rank, tp_rank, rank_at. rewrite Z.add_comm. split.
  - rewrite Z.div_add by lia. rewrite Z.div_small by lia. lia.
  - rewrite Z.mod_add by lia. apply Z.mod_small. lia.
Qed.

(* 6.8: each rank has a place (dp, tp) inside the mesh, and rank_at of that place is the rank. *)
Theorem every_rank_has_one_place : forall r, 0 <= r < world_size ->
  0 <= dp_rank r tp_size < dp_size world_size tp_size /\ 0 <= tp_rank r tp_size < tp_size /\
  rank_at (dp_rank r tp_size) (tp_rank r tp_size) tp_size = r.
Proof.
  intros r B. unfold dp_rank, tp_rank, rank_at.
  pose proof (Z.div_mod r tp_size ltac:(lia)). pose proof (Z.mod_pos_bound r tp_size ltac:(lia)).
  pose proof world_is_a_product. repeat split; nia.
Qed.

(* 6.8: each place (dp, tp) has a rank in the world, and the place of that rank is (dp, tp). With the theorem before,
   the map from ranks to places is a bijection. *)
Theorem every_place_has_one_rank : forall d t, 0 <= d < dp_size world_size tp_size -> 0 <= t < tp_size ->
  0 <= rank_at d t tp_size < world_size /\
  dp_rank (rank_at d t tp_size) tp_size = d /\ tp_rank (rank_at d t tp_size) tp_size = t.
Proof.
  intros d t D T. pose proof world_is_a_product. split; [unfold rank_at; nia | apply place_of_rank_at; exact T].
Qed.

(* 6.8: the created TP groups, one after the other, are the ranks of the world in order: every rank is in exactly one
   group, once. There are world_size / tp_size of them, and each has tp_size ranks. *)
Theorem created_tp_groups_partition_the_ranks :
  concat (tp_groups world_size tp_size) = range world_size /\
  Z.of_nat (length (tp_groups world_size tp_size)) = dp_size world_size tp_size /\
  forall group, In group (tp_groups world_size tp_size) -> Z.of_nat (length group) = tp_size.
Proof.
  pose proof dp_size_positive as P. split; [|split].
  - unfold tp_groups, tp_group, rank_at. rewrite <- flat_map_concat_map, rows_of_a_rectangle by lia.
    rewrite <- world_is_a_product. reflexivity.
  - unfold tp_groups. rewrite map_length. apply length_range. lia.
  - intros group I. unfold tp_groups in I. apply in_map_iff in I. destruct I as (k & <- & _).
    unfold tp_group. rewrite map_length. apply length_range. lia.
Qed.

(* 6.8: the DP groups hold every rank of the world exactly once, too. *)
Theorem dp_groups_partition_the_ranks : Permutation (concat (dp_groups world_size tp_size)) (range world_size).
Proof.
  rewrite <- (proj1 created_tp_groups_partition_the_ranks). unfold tp_groups, dp_groups, tp_group, dp_group.
  rewrite <- !flat_map_concat_map. apply transposed.
Qed.

(* 6.8: TP group d and DP group t share the rank at (d, t) and no other, and neither holds a rank twice. *)
Theorem dp_groups_cross_each_tp_group_once : forall d t,
  0 <= d < dp_size world_size tp_size -> 0 <= t < tp_size ->
  (forall r, In r (tp_group d tp_size) /\ In r (dp_group t world_size tp_size) <-> r = rank_at d t tp_size) /\
  NoDup (tp_group d tp_size) /\ NoDup (dp_group t world_size tp_size).
Proof.
  intros d t D T. split; [|split].
  - intros r. unfold tp_group, dp_group. rewrite !in_map_iff. split.
    + intros [(t' & <- & B) (d' & E & C)]. apply in_range in B, C.
      pose proof (place_of_rank_at d t' B) as [X Y]. pose proof (place_of_rank_at d' t T) as [X' Y'].
      rewrite E in X', Y'. congruence.
    + intros ->. split; [exists t | exists d]; rewrite in_range; auto.
  - unfold tp_group. apply NoDup_map_range. intros a b A B E. unfold rank_at in E. lia.
  - unfold dp_group. apply NoDup_map_range. intros a b A B E. unfold rank_at in E. nia.
Qed.

End OneWorld.

(* 6.8: for groups of one size, the i-th elements of all of them: groups that the user gives, crossed by position. *)
Fixpoint orthogonal_groups (groups : list (list Z)) (size : nat) : list (list Z) :=
  match size with
  | O => []
  | S n => map (hd 0) groups :: orthogonal_groups (map (@tl Z) groups) n
  end.

(* 6.8: the orthogonal groups of any groups of one size hold exactly the ranks of these groups, each as often; so they
   partition the world where the given groups do. *)
Theorem orthogonal_groups_hold_the_same_ranks : forall size groups,
  (forall group, In group groups -> length group = size) ->
  Permutation (concat (orthogonal_groups groups size)) (concat groups).
Proof.
  induction size as [|size IH]; intros groups H; simpl.
  - induction groups as [|g groups IH]; [constructor|]. simpl.
    assert (g = []) as -> by (apply length_zero_iff_nil, H; simpl; auto).
    apply IH. intros g' I. apply H. simpl. auto.
  - rewrite IH.
    + clear IH. induction groups as [|g groups IH]; [constructor|]. simpl.
      destruct g as [|r g]; [discriminate (H [] (or_introl eq_refl))|]. simpl. constructor.
      rewrite <- IH by (intros g' I; apply H; simpl; auto).
      rewrite !app_assoc. apply Permutation_app_tail, Permutation_app_comm.
    + intros g I. apply in_map_iff in I. destruct I as (g' & <- & I). pose proof (H g' I) as L.
      destruct g'; simpl in *; congruence.
Qed.
