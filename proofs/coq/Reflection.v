(* What the booleans of Contract.v say, as propositions: lemmas that are about no particular input. *)
From Coq Require Import ZArith List Bool Lia.
From TPInit Require Import Vocabulary Table Prose Formulations Contract.
Import ListNotations.
Open Scope Z_scope.

Lemma is_some_iff : forall {A} (x : option A), is_some x = true <-> exists y, x = Some y.
Proof. intros A [y|]; split; intros H; try discriminate; eauto. destruct H as [y E]. discriminate. Qed.

Lemma in_given : forall {A} (at_source : Source -> option A) sources s v,
  In (s, v) (given at_source sources) <-> In s sources /\ at_source s = Some v.
Proof.
  intros A at_source sources s v. unfold given. rewrite in_flat_map. split.
  - intros (t & I & H). destruct (at_source t) as [w|] eqn:E; [|contradiction].
    destruct H as [H|[]]. injection H as -> ->. auto.
  - intros [I E]. exists s. rewrite E. simpl. auto.
Qed.

Lemma is_nil_iff : forall {A} (l : list A), is_nil l = true <-> forall x, ~ In x l.
Proof.
  intros A [|y l]; simpl; split; intros H; auto; try discriminate.
  exfalso. apply (H y). auto.
Qed.

Lemma not_is_nil_iff : forall {A} (l : list A), negb (is_nil l) = true <-> exists x, In x l.
Proof.
  intros A [|y l]; simpl; split; intros H; eauto; try discriminate.
  destruct H as [x []].
Qed.

Lemma differ_iff : forall {A} (eqb : A -> A -> bool) (l : list (Source * A)),
  (forall a b, eqb a b = true <-> a = b) ->
  (differ eqb l = true <-> exists s v t w, In (s, v) l /\ In (t, w) l /\ v <> w).
Proof.
  intros A eqb l EQ. unfold differ. rewrite existsb_exists. split.
  - intros ((s & v) & I & H). apply existsb_exists in H. destruct H as ((t & w) & J & H).
    apply negb_true_iff in H. simpl in H. exists s, v, t, w. repeat split; auto.
    intros E. apply EQ in E. congruence.
  - intros (s & v & t & w & I & J & N). exists (s, v). split; [exact I|].
    apply existsb_exists. exists (t, w). split; [exact J|]. apply negb_true_iff. simpl.
    destruct (eqb v w) eqn:E; [|reflexivity]. apply EQ in E. contradiction.
Qed.

Lemma nothing_differs : forall {A} (eqb : A -> A -> bool) (l : list (Source * A)),
  (forall a b, eqb a b = true <-> a = b) -> differ eqb l = false ->
  forall s v t w, In (s, v) l -> In (t, w) l -> v = w.
Proof.
  intros A eqb l EQ N s v t w I J. destruct (eqb v w) eqn:E; [apply EQ; exact E|].
  assert (differ eqb l = true) as F; [|congruence].
  apply (differ_iff eqb l EQ). exists s, v, t, w. repeat split; auto.
  intros F. apply EQ in F. congruence.
Qed.

Lemma not_true_iff : forall (b : bool) (P : Prop), (b = true <-> P) -> (negb b = true <-> ~ P).
Proof. intros [] P H; simpl; intuition congruence. Qed.

Lemma true_and : forall (a b : bool) (P Q : Prop),
  (a = true <-> P) -> (b = true <-> Q) -> (a && b = true <-> P /\ Q).
Proof. intros a b P Q X Y. rewrite andb_true_iff, X, Y. reflexivity. Qed.

Lemma not_dividing_iff : forall n w, 1 <= n -> (negb (w mod n =? 0) = true <-> ~ (n | w)).
Proof.
  intros n w P. apply not_true_iff. rewrite Z.eqb_eq. apply Z.mod_divide. lia.
Qed.

Lemma bool_eq_iff : forall a b : bool, (a = true <-> b = true) -> a = b.
Proof. intros [] []; intuition congruence. Qed.
