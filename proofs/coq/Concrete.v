(* Concrete inputs: a group is its identity and its size. The witnesses of what can happen; what is extracted, too. *)
From Coq Require Import ZArith List Bool Lia.
From TPInit Require Import Vocabulary Table Prose Formulations Contract.
Import ListNotations.
Open Scope Z_scope.

Definition pair_eqb (a b : Z * Z) : bool := (fst a =? fst b) && (snd a =? snd b).

Lemma pair_eqb_eq : forall a b, pair_eqb a b = true <-> a = b.
Proof.
  intros [a b] [c d]. unfold pair_eqb. simpl. rewrite andb_true_iff, !Z.eqb_eq. split.
  - intros [-> ->]. reflexivity.
  - intros E. injection E. auto.
Qed.

#[global] Instance concrete_groups : Groups (Z * Z) := {
  group_eqb := pair_eqb;
  size_of := snd;
  group_eqb_eq := pair_eqb_eq }.

Definition facts_of_row (r : row) : facts :=
  let holds which := existsb (fun c => Fact_eqb (fst c) which && snd c) (row_facts r) in
  Facts (holds Fact_TPI) (holds Fact_TPG) (holds Fact_CFG) (holds Fact_MPU).

(* A world of 4 and a size of 2 everywhere. *)
Definition witness_of_row (r : row) : input (Z * Z) unit unit :=
  let f := facts_of_row r in
  let group := (1, 2) in
  Input 4
    (if is_TPI f then Some (Call 2 DType_BF16 (if is_TPG f then Some group else None)) else None)
    (if is_CFG f then Some (Section_ (Some 2) None None None tt) else None)
    None
    (if is_MPU f then Some (Mpu group None) else None)
    None.

(* For each violation, an input for which it alone holds. *)
Definition witness_alone (code : ViolationCode) : input (Z * Z) unit unit :=
  let section size dtype group := Some (Section_ size None dtype group tt) in
  let call size := Some (Call size DType_BF16 None) in
  match code with
  | ViolationCode_NO_TP_INTENT => Input 4 None None None None None
  | ViolationCode_NO_GROUP_SOURCE => Input 4 (call 2) None None None None
  | ViolationCode_GROUP_AND_MPU =>
    Input 4 (Some (Call 2 DType_BF16 (Some (1, 2)))) None None (Some (Mpu (1, 2) None)) None
  | ViolationCode_SIZE_MISSING => Input 4 None (section None None None) None None None
  | ViolationCode_SIZE_INVALID => Input 4 None (section (Some (-1)) None None) None None None
  | ViolationCode_SIZE_MISMATCH => Input 4 (call 4) (section (Some 2) None None) None None None
  | ViolationCode_DTYPE_MISMATCH => Input 4 (call 2) (section (Some 2) (Some DType_FP16) None) None None None
  | ViolationCode_GROUP_IDENTITY_MISMATCH => Input 4 None (section (Some 2) None (Some (1, 2))) None None (Some (2, 2))
  | ViolationCode_GROUP_SIZE_MISMATCH => Input 4 None (section (Some 2) None (Some (1, 4))) None None None
  | ViolationCode_SIZE_NOT_DIVIDING_WORLD => Input 4 None (section (Some 3) None None) None None None
  end.
