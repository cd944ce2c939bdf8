(* Generated from tpinit.spec.vocabulary by `python -m tpinit.proofs.coq generate`: do not edit. *)
From Coq Require Import ZArith List Bool.
Import ListNotations.
Open Scope Z_scope.

Inductive DType : Set :=
  | DType_FP32
  | DType_FP16
  | DType_BF16.

Definition DType_all : list DType :=
  [DType_FP32;
   DType_FP16;
   DType_BF16].

Definition DType_eqb (a b : DType) : bool :=
  match a, b with
  | DType_FP32, DType_FP32 => true
  | DType_FP16, DType_FP16 => true
  | DType_BF16, DType_BF16 => true
  | _, _ => false
  end.

Lemma DType_eqb_eq : forall a b, DType_eqb a b = true <-> a = b.
Proof. intros [] []; simpl; split; congruence. Qed.

Lemma DType_all_complete : forall a, In a DType_all.
Proof. intros []; simpl; tauto. Qed.

Inductive Fact : Set :=
  | Fact_TPI
  | Fact_TPG
  | Fact_CFG
  | Fact_MPU.

Definition Fact_all : list Fact :=
  [Fact_TPI;
   Fact_TPG;
   Fact_CFG;
   Fact_MPU].

Definition Fact_eqb (a b : Fact) : bool :=
  match a, b with
  | Fact_TPI, Fact_TPI => true
  | Fact_TPG, Fact_TPG => true
  | Fact_CFG, Fact_CFG => true
  | Fact_MPU, Fact_MPU => true
  | _, _ => false
  end.

Lemma Fact_eqb_eq : forall a b, Fact_eqb a b = true <-> a = b.
Proof. intros [] []; simpl; split; congruence. Qed.

Lemma Fact_all_complete : forall a, In a Fact_all.
Proof. intros []; simpl; tauto. Qed.

Inductive Outcome : Set :=
  | Outcome_ERROR
  | Outcome_NO_AUTOTP
  | Outcome_INIT_FROM_CONFIG
  | Outcome_INIT_FROM_CALL.

Definition Outcome_all : list Outcome :=
  [Outcome_ERROR;
   Outcome_NO_AUTOTP;
   Outcome_INIT_FROM_CONFIG;
   Outcome_INIT_FROM_CALL].

Definition Outcome_eqb (a b : Outcome) : bool :=
  match a, b with
  | Outcome_ERROR, Outcome_ERROR => true
  | Outcome_NO_AUTOTP, Outcome_NO_AUTOTP => true
  | Outcome_INIT_FROM_CONFIG, Outcome_INIT_FROM_CONFIG => true
  | Outcome_INIT_FROM_CALL, Outcome_INIT_FROM_CALL => true
  | _, _ => false
  end.

Lemma Outcome_eqb_eq : forall a b, Outcome_eqb a b = true <-> a = b.
Proof. intros [] []; simpl; split; congruence. Qed.

Lemma Outcome_all_complete : forall a, In a Outcome_all.
Proof. intros []; simpl; tauto. Qed.

Inductive FieldsFrom : Set :=
  | FieldsFrom_NOTHING
  | FieldsFrom_CONFIG
  | FieldsFrom_CALL
  | FieldsFrom_CONFIG_THEN_CALL.

Definition FieldsFrom_all : list FieldsFrom :=
  [FieldsFrom_NOTHING;
   FieldsFrom_CONFIG;
   FieldsFrom_CALL;
   FieldsFrom_CONFIG_THEN_CALL].

Definition FieldsFrom_eqb (a b : FieldsFrom) : bool :=
  match a, b with
  | FieldsFrom_NOTHING, FieldsFrom_NOTHING => true
  | FieldsFrom_CONFIG, FieldsFrom_CONFIG => true
  | FieldsFrom_CALL, FieldsFrom_CALL => true
  | FieldsFrom_CONFIG_THEN_CALL, FieldsFrom_CONFIG_THEN_CALL => true
  | _, _ => false
  end.

Lemma FieldsFrom_eqb_eq : forall a b, FieldsFrom_eqb a b = true <-> a = b.
Proof. intros [] []; simpl; split; congruence. Qed.

Lemma FieldsFrom_all_complete : forall a, In a FieldsFrom_all.
Proof. intros []; simpl; tauto. Qed.

Inductive GroupFrom : Set :=
  | GroupFrom_NOTHING
  | GroupFrom_CALL
  | GroupFrom_MPU
  | GroupFrom_CONFIG.

Definition GroupFrom_all : list GroupFrom :=
  [GroupFrom_NOTHING;
   GroupFrom_CALL;
   GroupFrom_MPU;
   GroupFrom_CONFIG].

Definition GroupFrom_eqb (a b : GroupFrom) : bool :=
  match a, b with
  | GroupFrom_NOTHING, GroupFrom_NOTHING => true
  | GroupFrom_CALL, GroupFrom_CALL => true
  | GroupFrom_MPU, GroupFrom_MPU => true
  | GroupFrom_CONFIG, GroupFrom_CONFIG => true
  | _, _ => false
  end.

Lemma GroupFrom_eqb_eq : forall a b, GroupFrom_eqb a b = true <-> a = b.
Proof. intros [] []; simpl; split; congruence. Qed.

Lemma GroupFrom_all_complete : forall a, In a GroupFrom_all.
Proof. intros []; simpl; tauto. Qed.

Inductive ViolationCode : Set :=
  | ViolationCode_NO_TP_INTENT
  | ViolationCode_NO_GROUP_SOURCE
  | ViolationCode_GROUP_AND_MPU
  | ViolationCode_SIZE_MISSING
  | ViolationCode_SIZE_INVALID
  | ViolationCode_SIZE_MISMATCH
  | ViolationCode_DTYPE_MISMATCH
  | ViolationCode_GROUP_IDENTITY_MISMATCH
  | ViolationCode_GROUP_SIZE_MISMATCH
  | ViolationCode_SIZE_NOT_DIVIDING_WORLD.

Definition ViolationCode_all : list ViolationCode :=
  [ViolationCode_NO_TP_INTENT;
   ViolationCode_NO_GROUP_SOURCE;
   ViolationCode_GROUP_AND_MPU;
   ViolationCode_SIZE_MISSING;
   ViolationCode_SIZE_INVALID;
   ViolationCode_SIZE_MISMATCH;
   ViolationCode_DTYPE_MISMATCH;
   ViolationCode_GROUP_IDENTITY_MISMATCH;
   ViolationCode_GROUP_SIZE_MISMATCH;
   ViolationCode_SIZE_NOT_DIVIDING_WORLD].

Definition ViolationCode_eqb (a b : ViolationCode) : bool :=
  match a, b with
  | ViolationCode_NO_TP_INTENT, ViolationCode_NO_TP_INTENT => true
  | ViolationCode_NO_GROUP_SOURCE, ViolationCode_NO_GROUP_SOURCE => true
  | ViolationCode_GROUP_AND_MPU, ViolationCode_GROUP_AND_MPU => true
  | ViolationCode_SIZE_MISSING, ViolationCode_SIZE_MISSING => true
  | ViolationCode_SIZE_INVALID, ViolationCode_SIZE_INVALID => true
  | ViolationCode_SIZE_MISMATCH, ViolationCode_SIZE_MISMATCH => true
  | ViolationCode_DTYPE_MISMATCH, ViolationCode_DTYPE_MISMATCH => true
  | ViolationCode_GROUP_IDENTITY_MISMATCH, ViolationCode_GROUP_IDENTITY_MISMATCH => true
  | ViolationCode_GROUP_SIZE_MISMATCH, ViolationCode_GROUP_SIZE_MISMATCH => true
  | ViolationCode_SIZE_NOT_DIVIDING_WORLD, ViolationCode_SIZE_NOT_DIVIDING_WORLD => true
  | _, _ => false
  end.

Lemma ViolationCode_eqb_eq : forall a b, ViolationCode_eqb a b = true <-> a = b.
Proof. intros [] []; simpl; split; congruence. Qed.

Lemma ViolationCode_all_complete : forall a, In a ViolationCode_all.
Proof. intros []; simpl; tauto. Qed.

Inductive Source : Set :=
  | Source_CALL_TP_SIZE
  | Source_CALL_DTYPE
  | Source_CALL_TP_GROUP
  | Source_CONFIG_AUTOTP_SIZE
  | Source_CONFIG_TP_SIZE
  | Source_CONFIG_DTYPE
  | Source_CONFIG_TP_GROUP
  | Source_PRECISION
  | Source_MPU_TP_GROUP
  | Source_MESH_TP_GROUP
  | Source_WORLD_SIZE
  | Source_CREATED
  | Source_UNSET.

Definition Source_all : list Source :=
  [Source_CALL_TP_SIZE;
   Source_CALL_DTYPE;
   Source_CALL_TP_GROUP;
   Source_CONFIG_AUTOTP_SIZE;
   Source_CONFIG_TP_SIZE;
   Source_CONFIG_DTYPE;
   Source_CONFIG_TP_GROUP;
   Source_PRECISION;
   Source_MPU_TP_GROUP;
   Source_MESH_TP_GROUP;
   Source_WORLD_SIZE;
   Source_CREATED;
   Source_UNSET].

Definition Source_eqb (a b : Source) : bool :=
  match a, b with
  | Source_CALL_TP_SIZE, Source_CALL_TP_SIZE => true
  | Source_CALL_DTYPE, Source_CALL_DTYPE => true
  | Source_CALL_TP_GROUP, Source_CALL_TP_GROUP => true
  | Source_CONFIG_AUTOTP_SIZE, Source_CONFIG_AUTOTP_SIZE => true
  | Source_CONFIG_TP_SIZE, Source_CONFIG_TP_SIZE => true
  | Source_CONFIG_DTYPE, Source_CONFIG_DTYPE => true
  | Source_CONFIG_TP_GROUP, Source_CONFIG_TP_GROUP => true
  | Source_PRECISION, Source_PRECISION => true
  | Source_MPU_TP_GROUP, Source_MPU_TP_GROUP => true
  | Source_MESH_TP_GROUP, Source_MESH_TP_GROUP => true
  | Source_WORLD_SIZE, Source_WORLD_SIZE => true
  | Source_CREATED, Source_CREATED => true
  | Source_UNSET, Source_UNSET => true
  | _, _ => false
  end.

Lemma Source_eqb_eq : forall a b, Source_eqb a b = true <-> a = b.
Proof. intros [] []; simpl; split; congruence. Qed.

Lemma Source_all_complete : forall a, In a Source_all.
Proof. intros []; simpl; tauto. Qed.

(* One truth for each fact. *)
Record facts : Set := Facts { is_TPI : bool; is_TPG : bool; is_CFG : bool; is_MPU : bool }.

Definition fact (f : facts) (which : Fact) : bool :=
  match which with
  | Fact_TPI => is_TPI f
  | Fact_TPG => is_TPG f
  | Fact_CFG => is_CFG f
  | Fact_MPU => is_MPU f
  end.
