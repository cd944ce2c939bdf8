(* Section 6, item 9: the arithmetic of shards, for every dimension and every number of shards. *)
From Coq Require Import ZArith List Bool Lia Permutation.
From TPInit Require Import Ranges.
Import ListNotations.
Open Scope Z_scope.

(* The definitions of runtime/shards.py, with Z for int and lists for tuples. *)
Definition shard_offset (length parts index : Z) : Z :=
  index * (length / parts) + (if index <? length mod parts then index else length mod parts).
Definition shard_length (length parts index : Z) : Z :=
  length / parts + (if index <? length mod parts then 1 else 0).
Definition shard (length parts index : Z) : Z * Z := (shard_offset length parts index, shard_length length parts index).
Definition aligned_shard (length unit parts index : Z) : Z * Z :=
  let (offset, held) := shard (length / unit) parts index in (offset * unit, held * unit).

Fixpoint pieces_from (start : Z) (blocks : list Z) (unit parts index : Z) : list (Z * Z) :=
  match blocks with
  | [] => []
  | length :: rest =>
    let (offset, held) := aligned_shard length unit parts index in
    (start + offset, held) :: pieces_from (start + length) rest unit parts index
  end.
Definition pieces (blocks : list Z) (unit parts index : Z) : list (Z * Z) := pieces_from 0 blocks unit parts index.

(* The positions of pieces, in their order; the length of a dimension of fused blocks. *)
Definition positions (found : list (Z * Z)) : list Z := flat_map (fun piece => span (fst piece) (snd piece)) found.
Definition total (blocks : list Z) : Z := fold_right Z.add 0 blocks.

Lemma shards_follow_each_other : forall length parts index, 0 <= length -> 0 <= index < parts ->
  shard_offset length parts (index + 1) = shard_offset length parts index + shard_length length parts index /\
  0 <= shard_length length parts index.
Proof.
  intros length parts index L B. unfold shard_offset, shard_length.
  pose proof (Z.mod_pos_bound length parts ltac:(lia)). pose proof (Z.div_pos length parts ltac:(lia) ltac:(lia)).
  destruct (Z.ltb_spec index (length mod parts)), (Z.ltb_spec (index + 1) (length mod parts)); lia.
Qed.

Lemma first_offset : forall length parts, 0 <= length -> 1 <= parts -> shard_offset length parts 0 = 0.
Proof.
  intros length parts L P. unfold shard_offset. pose proof (Z.mod_pos_bound length parts ltac:(lia)).
  destruct (Z.ltb_spec 0 (length mod parts)); lia.
Qed.

Lemma last_offset : forall length parts, 0 <= length -> 1 <= parts -> shard_offset length parts parts = length.
Proof.
  intros length parts L P. unfold shard_offset. pose proof (Z.mod_pos_bound length parts ltac:(lia)).
  pose proof (Z.div_mod length parts ltac:(lia)). destruct (Z.ltb_spec parts (length mod parts)); lia.
Qed.

(* 6.9: whether the number of shards divides the length or not, the first shard begins at 0, each ends where the next
   begins, the last ends at the length, and none has a negative length. So the shards, one after the other, are the
   dimension: no gap, no overlap. *)
Theorem shards_tile_the_dimension : forall length parts, 0 <= length -> 1 <= parts ->
  shard_offset length parts 0 = 0 /\ shard_offset length parts parts = length /\
  (forall index, 0 <= index < parts ->
    shard_offset length parts (index + 1) = shard_offset length parts index + shard_length length parts index /\
    0 <= shard_length length parts index) /\
  flat_map (fun index => positions [shard length parts index]) (range parts) = range length.
Proof.
  intros length parts L P. pose proof (first_offset length parts L P) as F.
    pose proof (last_offset length parts L P) as E.
  repeat split; auto; try (apply shards_follow_each_other; auto).
  pose proof (spans_in_order (shard_offset length parts) (shard_length length parts) 0 parts ltac:(lia)) as S.
  rewrite F, E, Z.sub_0_r, Z.add_0_r in S. unfold range at 2. rewrite <- S; try lia.
  - apply flat_map_ext. intros index. unfold positions, shard. simpl. apply app_nil_r.
  - intros index B. apply shards_follow_each_other; auto.
Qed.

(* 6.9: every position of the dimension is in exactly one shard. *)
Theorem every_position_has_one_shard : forall length parts p, 1 <= parts -> 0 <= p < length ->
  exists index, 0 <= index < parts /\ In p (positions [shard length parts index]) /\
  forall other, 0 <= other < parts -> In p (positions [shard length parts other]) -> other = index.
Proof.
  intros length parts p P B. destruct (shards_tile_the_dimension length parts ltac:(lia) P) as (_ & _ & _ & T).
  assert (In p (flat_map (fun index => positions [shard length parts index]) (range parts))) as I.
  { rewrite T. apply in_range. exact B. }
  apply in_flat_map in I. destruct I as (index & I & J). apply in_range in I. exists index. repeat split; auto; try lia.
  assert (forall k, 0 <= k <= parts -> forall j, 0 <= j < k ->
    shard_offset length parts j + shard_length length parts j <= shard_offset length parts k) as M.
  { intros k K. destruct K as [K0 K1]. revert K1. pattern k. apply natlike_ind; [lia| |exact K0].
    intros x X IH N j J'. rewrite <- Z.add_1_r in *.
    destruct (shards_follow_each_other length parts x ltac:(lia) ltac:(lia)) as [E L].
    destruct (Z.eq_dec j x) as [->|Q]; [lia|]. specialize (IH ltac:(lia) j ltac:(lia)). lia. }
  intros other O J'. unfold positions, shard in J, J'. simpl in J, J'. rewrite app_nil_r, in_span in J, J'.
  destruct (Z.lt_trichotomy index other) as [X|[X|X]]; [|lia|].
  - pose proof (M other ltac:(lia) index ltac:(lia)). lia.
  - pose proof (M index ltac:(lia) other ltac:(lia)). lia.
Qed.

(* 6.9: the lengths of two shards differ by at most 1, the longer ones come first, and all are equal where the number of
   shards divides the length. *)
Theorem shards_are_balanced : forall length parts i j, 0 <= length -> 0 <= i < j -> j < parts ->
  0 <= shard_length length parts i - shard_length length parts j <= 1 /\
  (length mod parts = 0 -> shard_length length parts i = shard_length length parts j).
Proof.
  intros length parts i j L B P. unfold shard_length. pose proof (Z.mod_pos_bound length parts ltac:(lia)).
  destruct (Z.ltb_spec i (length mod parts)), (Z.ltb_spec j (length mod parts)); lia.
Qed.

Lemma aligned_shards_in_order : forall start length unit parts, 0 <= length -> 1 <= unit -> (unit | length) ->
  1 <= parts ->
  flat_map (fun index => span (start + fst (aligned_shard length unit parts index)) (snd (aligned_shard length unit
    parts index)))
    (range parts) = span start length.
Proof.
  intros start length unit parts L U [units ->] P. rewrite <- (Z.mul_comm unit) in *.
  assert (0 <= units) as V by nia.
  pose proof (spans_in_order (fun index => shard_offset units parts index * unit)
    (fun index => shard_length units parts index * unit) start parts ltac:(lia)) as S.
  cbv beta in S. rewrite first_offset, last_offset in S by lia. simpl in S. rewrite Z.add_0_r, Z.sub_0_r in S.
  rewrite (Z.mul_comm unit). rewrite <- S; [|intros index B|lia].
  - apply flat_map_ext. intros index. unfold aligned_shard, shard. rewrite Z.div_mul by lia. reflexivity.
  - destruct (shards_follow_each_other units parts index V B). split; nia.
Qed.

(* 6.9: where the unit (the size of a head) divides the length, the aligned shards begin and end at multiples of the
   unit, and one after the other they are the dimension. With unit 1 they are the shards. *)
Theorem aligned_shards_keep_units_whole : forall length unit parts,
  0 <= length -> 1 <= unit -> (unit | length) -> 1 <= parts ->
  (forall index, (unit | fst (aligned_shard length unit parts index)) /\
    (unit | snd (aligned_shard length unit parts index))) /\
  flat_map (fun index => positions [aligned_shard length unit parts index]) (range parts) = range length /\
  (forall index, aligned_shard length 1 parts index = shard length parts index).
Proof.
  intros length unit parts L U D P. split; [|split].
  - intros index. unfold aligned_shard. destruct (shard (length / unit) parts index) as [offset held]. simpl.
    split; apply Z.divide_factor_r.
  - unfold range at 2. rewrite <- (aligned_shards_in_order 0 length unit parts L U D P). apply flat_map_ext.
    intros index. unfold positions. simpl. rewrite app_nil_r. reflexivity.
  - intros index. unfold aligned_shard, shard. rewrite Z.div_1_r, !Z.mul_1_r. reflexivity.
Qed.

Lemma pieces_from_are_a_permutation : forall blocks start unit parts,
  1 <= unit -> 1 <= parts -> (forall length, In length blocks -> 0 <= length /\ (unit | length)) ->
  Permutation (flat_map (fun index => positions (pieces_from start blocks unit parts index)) (range parts))
    (span start (total blocks)).
Proof.
  induction blocks as [|length blocks IH]; intros start unit parts U P H.
  - simpl. induction (range parts) as [|index l IHl]; simpl; [constructor | exact IHl].
  - assert (0 <= total blocks) as T.
    { clear IH. assert (forall b, In b blocks -> 0 <= b) as N by (intros b I; apply H; simpl; auto). clear H.
      induction blocks as [|b blocks IH]; simpl; [lia|]. pose proof (N b (or_introl eq_refl)).
      assert (0 <= total blocks) by (apply IH; intros c I; apply N; simpl; auto). unfold total in *. lia. }
    destruct (H length (or_introl eq_refl)) as [L D].
    simpl total. rewrite span_app by assumption.
    rewrite <- (aligned_shards_in_order start length unit parts L U D P).
    rewrite <- (IH (start + length) unit parts U P) by (intros b I; apply H; simpl; auto).
    rewrite <- flat_map_app_each. erewrite flat_map_ext; [apply Permutation_refl|]. intros index. simpl.
    destruct (aligned_shard length unit parts index) as [offset held]. reflexivity.
Qed.

(* 6.9: for any number of fused blocks and any unit that divides each of them, the positions that the shards hold, all
   together, are the positions of the dimension, each once. With one block this is the layout by heads. *)
Theorem fused_pieces_are_a_permutation : forall blocks unit parts,
  1 <= unit -> 1 <= parts -> (forall length, In length blocks -> 0 <= length /\ (unit | length)) ->
  Permutation (flat_map (fun index => positions (pieces blocks unit parts index)) (range parts)) (range (total blocks)).
Proof. intros blocks unit parts. apply pieces_from_are_a_permutation. Qed.

(* A shard holds the values of a dimension at its positions; gathering writes them back to these positions. *)
Definition held {A : Type} (x : Z -> A) (found : list (Z * Z)) : list A := map x (positions found).
Definition written_back {A : Type} (found : Z -> list (Z * Z)) (shards : Z -> list A) (parts : Z) : list (Z * A) :=
  flat_map (fun index => combine (positions (found index)) (shards index)) (range parts).

(* 6.9: gathering inverts cutting. For every dimension of values x, writing what each shard holds back to the
   positions of its pieces writes every position exactly once, and writes the value that x has there. *)
Theorem gather_inverts_the_cut : forall {A : Type} (x : Z -> A) blocks unit parts,
  1 <= unit -> 1 <= parts -> (forall length, In length blocks -> 0 <= length /\ (unit | length)) ->
  let found := pieces blocks unit parts in
  Permutation (written_back found (fun index => held x (found index)) parts)
    (map (fun p => (p, x p)) (range (total blocks))).
Proof.
  intros A x blocks unit parts U P H found.
  rewrite <- (Permutation_map (fun p => (p, x p)) (fused_pieces_are_a_permutation blocks unit parts U P H)).
  unfold written_back, held. fold found. induction (range parts) as [|index l IH]; simpl; [constructor|].
  rewrite map_app, IH. apply Permutation_app_tail.
  induction (positions (found index)) as [|p ps IHp]; simpl; [constructor | constructor; exact IHp].
Qed.

(* 6.9: the unit must divide the blocks: a block of 5 in units of 2 leaves a position that no shard holds. *)
Theorem a_unit_that_does_not_divide_leaves_a_gap :
  forall index, 0 <= index < 2 -> ~ In 4 (positions (pieces [5] 2 2 index)).
Proof.
  intros index B I. assert (index = 0 \/ index = 1) as [-> | ->] by lia; vm_compute in I; intuition discriminate.
Qed.
