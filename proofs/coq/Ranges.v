(* Ranges of Z as lists, and what lists of ranges have in common. *)
From Coq Require Import ZArith List Bool Lia Permutation.
Import ListNotations.
Open Scope Z_scope.

(* [span start n]: start, start + 1, ..., n integers; none where n is not positive. *)
Definition span (start n : Z) : list Z := map (fun k => start + Z.of_nat k) (seq 0 (Z.to_nat n)).

(* Python's range(n). *)
Definition range (n : Z) : list Z := span 0 n.

Lemma in_span : forall start n x, In x (span start n) <-> start <= x < start + n.
Proof.
  intros start n x. unfold span. rewrite in_map_iff. split.
  - intros (k & <- & I). apply in_seq in I. lia.
  - intros B. exists (Z.to_nat (x - start)). split; [lia|]. apply in_seq. lia.
Qed.

Lemma in_range : forall n x, In x (range n) <-> 0 <= x < n.
Proof. intros n x. unfold range. rewrite in_span. lia. Qed.

Lemma length_range : forall n, 0 <= n -> Z.of_nat (length (range n)) = n.
Proof. intros n P. unfold range, span. rewrite map_length, seq_length. lia. Qed.

Lemma seq_shifted : forall n a start, seq (a + start) n = map (fun k => (a + k)%nat) (seq start n).
Proof. induction n as [|n IH]; intros a start; simpl; [reflexivity|]. rewrite <- IH, Nat.add_succ_r. reflexivity. Qed.

Lemma span_app : forall start a b, 0 <= a -> 0 <= b -> span start (a + b) = span start a ++ span (start + a) b.
Proof.
  intros start a b A B. unfold span. rewrite Z2Nat.inj_add, seq_app, map_app by lia. f_equal. simpl.
  rewrite <- (Nat.add_0_r (Z.to_nat a)), seq_shifted, map_map. apply map_ext. intros k. lia.
Qed.

Lemma span_empty : forall start, span start 0 = [].
Proof. reflexivity. Qed.

Lemma span_one : forall start, span start 1 = [start].
Proof. intros start. unfold span. simpl. rewrite Z.add_0_r. reflexivity. Qed.

Lemma span_is_shifted : forall start n, span start n = map (fun k => start + k) (range n).
Proof. intros start n. unfold range, span. rewrite map_map. apply map_ext. intros k. lia. Qed.

Lemma range_succ : forall n, 0 <= n -> range (n + 1) = range n ++ [n].
Proof. intros n P. unfold range. rewrite span_app by lia. rewrite span_one. reflexivity. Qed.

Lemma NoDup_map_range : forall (f : Z -> Z) n,
  (forall a b, 0 <= a < n -> 0 <= b < n -> f a = f b -> a = b) -> NoDup (map f (range n)).
Proof.
  intros f n I. unfold range, span. rewrite map_map.
  assert (forall l, (forall k, In k l -> 0 <= Z.of_nat k < n) -> NoDup l ->
    NoDup (map (fun k => f (0 + Z.of_nat k)) l)) as H.
  { induction l as [|k l IH]; intros B N; simpl; [constructor|]. inversion N; subst. constructor.
    - intros J. apply in_map_iff in J. destruct J as (k' & E & J).
      assert (0 + Z.of_nat k' = 0 + Z.of_nat k) as F.
      { apply I; [apply B; simpl; auto | apply B; simpl; auto | exact E]. }
      assert (k' = k) by lia. congruence.
    - apply IH; [|assumption]. intros k' J. apply B. simpl. auto. }
  apply H; [|apply seq_NoDup]. intros k J. apply in_seq in J. lia.
Qed.

Lemma NoDup_span : forall start n, NoDup (span start n).
Proof. intros start n. rewrite span_is_shifted. apply NoDup_map_range. intros. lia. Qed.

(* Ranges that follow each other: from [f 0] to [f n]. *)
Lemma spans_in_order : forall (f held : Z -> Z) start n, 0 <= n ->
  (forall k, 0 <= k < n -> f (k + 1) = f k + held k /\ 0 <= held k) -> 0 <= f 0 ->
  flat_map (fun k => span (start + f k) (held k)) (range n) = span (start + f 0) (f n - f 0).
Proof.
  intros f held start n P. pattern n. apply natlike_ind; [| |exact P].
  - intros _ _. rewrite Z.sub_diag. reflexivity.
  - intros m M IH H Z. rewrite <- Z.add_1_r, range_succ, flat_map_app by exact M. simpl.
    rewrite IH by (try exact Z; intros k B; apply H; lia). rewrite app_nil_r.
    destruct (H m ltac:(lia)) as [E L]. rewrite E.
    assert (f 0 <= f m) as O.
    { assert (forall j, 0 <= j -> j <= m -> f 0 <= f j) as W.
      { intros j J. pattern j. apply natlike_ind; [lia| |exact J]. intros x X IHx B.
        rewrite <- Z.add_1_r. destruct (H x ltac:(lia)). specialize (IHx ltac:(lia)). lia. }
      apply W; lia. }
    replace (f m + held m - f 0) with ((f m - f 0) + held m) by lia. rewrite span_app by lia.
    f_equal. f_equal. lia.
Qed.

(* The rows of a rectangle, in order. *)
Lemma rows_of_a_rectangle : forall width height, 0 <= width -> 0 <= height ->
  flat_map (fun k => map (fun p => k * width + p) (range width)) (range height) = range (height * width).
Proof.
  intros width height W H.
  pose proof (spans_in_order (fun k => k * width) (fun _ => width) 0 height H) as S. simpl in S.
  rewrite Z.sub_0_r in S. unfold range at 3. rewrite <- S by (intros; lia).
  apply flat_map_ext. intros k. symmetry. apply span_is_shifted.
Qed.

(* Reading a rectangle by columns or by rows gives the same elements. *)
Lemma transposed : forall {A B C} (f : A -> B -> C) (l : list A) (m : list B),
  Permutation (flat_map (fun b => map (fun a => f a b) l) m) (flat_map (fun a => map (f a) m) l).
Proof.
  intros A B C f l m. induction l as [|a l IH]; simpl.
  - induction m as [|b m IH]; simpl; [constructor | exact IH].
  - rewrite <- IH. clear IH. induction m as [|b m IH]; simpl; [constructor|]. constructor.
    rewrite IH. rewrite !app_assoc. apply Permutation_app_tail, Permutation_app_comm.
Qed.

Lemma flat_map_app_each : forall {A B} (f g : A -> list B) l,
  Permutation (flat_map (fun x => f x ++ g x) l) (flat_map f l ++ flat_map g l).
Proof.
  intros A B f g l. induction l as [|x l IH]; simpl; [constructor|].
  rewrite IH, <- !app_assoc. apply Permutation_app_head. rewrite !app_assoc.
  apply Permutation_app_tail, Permutation_app_comm.
Qed.
