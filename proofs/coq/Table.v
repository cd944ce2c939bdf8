(* Generated from tpinit.spec.table.ROWS by `python -m tpinit.proofs.coq generate`: do not edit. *)
From Coq Require Import ZArith List Bool.
From TPInit Require Import Vocabulary.
Import ListNotations.
Open Scope Z_scope.

(* One row: its number, its condition on each fact, and the result. The code is set where the outcome is an error. *)
Record row : Set := Row {
  row_number : Z;
  row_facts : list (Fact * bool);
  row_outcome : Outcome;
  row_code : option ViolationCode;
  row_fields_from : FieldsFrom;
  row_group_from : GroupFrom }.

Definition rows : list row := [
  Row 1 [(Fact_TPI, false); (Fact_TPG, false); (Fact_CFG, false); (Fact_MPU, false)]
    Outcome_ERROR (Some ViolationCode_NO_TP_INTENT) FieldsFrom_NOTHING GroupFrom_NOTHING;
  Row 2 [(Fact_TPI, false); (Fact_TPG, false); (Fact_CFG, false); (Fact_MPU, true)]
    Outcome_NO_AUTOTP None FieldsFrom_NOTHING GroupFrom_NOTHING;
  Row 3 [(Fact_TPI, false); (Fact_TPG, false); (Fact_CFG, true); (Fact_MPU, false)]
    Outcome_INIT_FROM_CONFIG None FieldsFrom_CONFIG GroupFrom_CONFIG;
  Row 4 [(Fact_TPI, false); (Fact_TPG, false); (Fact_CFG, true); (Fact_MPU, true)]
    Outcome_INIT_FROM_CONFIG None FieldsFrom_CONFIG GroupFrom_MPU;
  Row 5 [(Fact_TPI, true); (Fact_TPG, false); (Fact_CFG, false); (Fact_MPU, false)]
    Outcome_ERROR (Some ViolationCode_NO_GROUP_SOURCE) FieldsFrom_NOTHING GroupFrom_NOTHING;
  Row 6 [(Fact_TPI, true); (Fact_TPG, false); (Fact_CFG, false); (Fact_MPU, true)]
    Outcome_INIT_FROM_CALL None FieldsFrom_CALL GroupFrom_MPU;
  Row 7 [(Fact_TPI, true); (Fact_TPG, false); (Fact_CFG, true); (Fact_MPU, false)]
    Outcome_INIT_FROM_CONFIG None FieldsFrom_CONFIG_THEN_CALL GroupFrom_CONFIG;
  Row 8 [(Fact_TPI, true); (Fact_TPG, false); (Fact_CFG, true); (Fact_MPU, true)]
    Outcome_INIT_FROM_CONFIG None FieldsFrom_CONFIG_THEN_CALL GroupFrom_MPU;
  Row 9 [(Fact_TPI, true); (Fact_TPG, true); (Fact_CFG, false); (Fact_MPU, false)]
    Outcome_INIT_FROM_CALL None FieldsFrom_CALL GroupFrom_CALL;
  Row 10 [(Fact_TPI, true); (Fact_TPG, true); (Fact_CFG, false); (Fact_MPU, true)]
    Outcome_ERROR (Some ViolationCode_GROUP_AND_MPU) FieldsFrom_NOTHING GroupFrom_NOTHING;
  Row 11 [(Fact_TPI, true); (Fact_TPG, true); (Fact_CFG, true); (Fact_MPU, false)]
    Outcome_INIT_FROM_CONFIG None FieldsFrom_CONFIG_THEN_CALL GroupFrom_CALL;
  Row 12 [(Fact_TPI, true); (Fact_TPG, true); (Fact_CFG, true); (Fact_MPU, true)]
    Outcome_ERROR (Some ViolationCode_GROUP_AND_MPU) FieldsFrom_NOTHING GroupFrom_NOTHING].
