(* Generated from tpinit.spec.prose.RULES and DISAGREEMENTS by `python -m tpinit.proofs.coq generate`: do not edit. *)
From Coq Require Import ZArith List Bool.
From TPInit Require Import Vocabulary.
Import ListNotations.
Open Scope Z_scope.

(* One sentence: its guard, and what it contributes where the guard holds. *)
Record rule : Set := Rule {
  rule_when : list (Fact * bool);
  rule_outcome : option Outcome;
  rule_reads_config : bool;
  rule_reads_call : bool;
  rule_group : option GroupFrom;
  rule_rejects : option ViolationCode }.

Definition rules : list rule := [
  (* P1: the config is the canonical source of every field *)
  Rule [(Fact_CFG, true)]
    (Some Outcome_INIT_FROM_CONFIG) true false None None;
  (* P2: a field that the config lacks is filled from the call *)
  Rule [(Fact_TPI, true)]
    None false true None None;
  (* P2: where there is no config, every field is lacking and the call initialises *)
  Rule [(Fact_TPI, true); (Fact_CFG, false)]
    (Some Outcome_INIT_FROM_CALL) false false None None;
  (* P4: a call's tp_group is the group *)
  Rule [(Fact_TPG, true)]
    None false false (Some GroupFrom_CALL) None;
  (* P4: a call's tp_group rejects any mpu *)
  Rule [(Fact_TPG, true); (Fact_MPU, true)]
    None false false None (Some ViolationCode_GROUP_AND_MPU);
  (* P5: without it, the mpu gives a call its group *)
  Rule [(Fact_TPI, true); (Fact_MPU, true); (Fact_TPG, false)]
    None false false (Some GroupFrom_MPU) None;
  (* P5: without it, the mpu gives a config its group *)
  Rule [(Fact_CFG, true); (Fact_MPU, true); (Fact_TPG, false)]
    None false false (Some GroupFrom_MPU) None;
  (* P5: without both, a section has other group sources *)
  Rule [(Fact_CFG, true); (Fact_TPG, false); (Fact_MPU, false)]
    None false false (Some GroupFrom_CONFIG) None;
  (* P6: a call alone requires a direct source: its own tp_group or an mpu *)
  Rule [(Fact_TPI, true); (Fact_CFG, false); (Fact_TPG, false); (Fact_MPU, false)]
    None false false None (Some ViolationCode_NO_GROUP_SOURCE);
  (* P7: without a call and without a section there is no AutoTP *)
  Rule [(Fact_TPI, false); (Fact_CFG, false)]
    (Some Outcome_NO_AUTOTP) false false None None;
  (* P7: an error when nothing at all was given *)
  Rule [(Fact_TPI, false); (Fact_CFG, false); (Fact_MPU, false)]
    None false false None (Some ViolationCode_NO_TP_INTENT)].

(* P3 for one field. Where the list of groups is not empty, the sizes are compared with the sizes of these groups. *)
Record disagreement : Set := Disagreement {
  disagreement_code : ViolationCode;
  disagreement_sources : list Source;
  disagreement_groups : list Source;
  disagreement_except : option (Source * Source) }.

Definition disagreements : list disagreement := [
  Disagreement ViolationCode_SIZE_MISMATCH
    [Source_CALL_TP_SIZE; Source_CONFIG_TP_SIZE; Source_CONFIG_AUTOTP_SIZE]
    []
    None;
  Disagreement ViolationCode_DTYPE_MISMATCH
    [Source_CALL_DTYPE; Source_PRECISION; Source_CONFIG_DTYPE]
    []
    None;
  Disagreement ViolationCode_GROUP_IDENTITY_MISMATCH
    [Source_MESH_TP_GROUP; Source_CONFIG_TP_GROUP; Source_MPU_TP_GROUP; Source_CALL_TP_GROUP]
    []
    (Some (Source_MPU_TP_GROUP, Source_CALL_TP_GROUP));
  Disagreement ViolationCode_GROUP_SIZE_MISMATCH
    [Source_CALL_TP_SIZE; Source_CONFIG_TP_SIZE; Source_CONFIG_AUTOTP_SIZE]
    [Source_MESH_TP_GROUP; Source_CONFIG_TP_GROUP; Source_MPU_TP_GROUP; Source_CALL_TP_GROUP]
    None].
