(* The contract for one input: what is given, the merge, the ten violations, the decision.

   Definitions only. Groups are any type with a decidable equality and a size; sizes are Z, so nothing is bounded
   (contract, section 6, item 7). [D] is the type of dp_group and [C] the type of what a section carries: the
   decision can only pass them on. *)
From Coq Require Import ZArith List Bool.
From TPInit Require Import Vocabulary Table Prose Formulations.
Import ListNotations.
Open Scope Z_scope.

Class Groups (G : Type) := {
  group_eqb : G -> G -> bool;
  size_of : G -> Z;
  group_eqb_eq : forall a b, group_eqb a b = true <-> a = b }.

(* --- the inputs (section 4); A0 holds by construction: a tp_group is a field of a call --- *)

Record call (G : Type) := Call { call_tp_size : Z; call_dtype : DType; call_tp_group : option G }.

Record section (G C : Type) := Section_ {
  section_autotp_size : option Z;
  section_tp_size : option Z;
  section_dtype : option DType;
  section_tp_group : option G;
  section_carried : C }.

Record mpu (G D : Type) := Mpu { mpu_tp_group : G; mpu_dp_group : option D }.

Record input (G D C : Type) := Input {
  input_world_size : Z;
  input_call : option (call G);
  input_section : option (section G C);
  input_precision : option DType;
  input_mpu : option (mpu G D);
  input_mesh : option G }.

Arguments Call {G}.
Arguments call_tp_size {G}.
Arguments call_dtype {G}.
Arguments call_tp_group {G}.
Arguments Section_ {G C}.
Arguments section_autotp_size {G C}.
Arguments section_tp_size {G C}.
Arguments section_dtype {G C}.
Arguments section_tp_group {G C}.
Arguments section_carried {G C}.
Arguments Mpu {G D}.
Arguments mpu_tp_group {G D}.
Arguments mpu_dp_group {G D}.
Arguments Input {G D C}.
Arguments input_world_size {G D C}.
Arguments input_call {G D C}.
Arguments input_section {G D C}.
Arguments input_precision {G D C}.
Arguments input_mpu {G D C}.
Arguments input_mesh {G D C}.

(* --- the decision --- *)

Inductive value (G : Type) := SizeValue (size : Z) | DTypeValue (dtype : DType) | GroupValue (group : G).
Arguments SizeValue {G}.
Arguments DTypeValue {G}.
Arguments GroupValue {G}.

(* None: the decision has no such value. (source, None): the dtype is unset, or the group is to be created. *)
Definition effective (A : Type) : Type := option (Source * option A).

Record decision (G D C : Type) := Decision {
  decision_row : option Z;
  decision_outcome : Outcome;
  decision_tp_size : effective Z;
  decision_dtype : effective DType;
  decision_tp_group : effective G;
  decision_violations : list (ViolationCode * list (Source * value G));
  decision_section_disabled : bool;
  decision_world_size : Z;
  decision_dp_group : option D;
  decision_carried : option C }.

Arguments Decision {G D C}.
Arguments decision_row {G D C}.
Arguments decision_outcome {G D C}.
Arguments decision_tp_size {G D C}.
Arguments decision_dtype {G D C}.
Arguments decision_tp_group {G D C}.
Arguments decision_violations {G D C}.
Arguments decision_section_disabled {G D C}.
Arguments decision_world_size {G D C}.
Arguments decision_dp_group {G D C}.
Arguments decision_carried {G D C}.

(* --- what is given --- *)

Definition bind {A B : Type} (x : option A) (f : A -> option B) : option B :=
  match x with Some y => f y | None => None end.

Definition is_some {A : Type} (x : option A) : bool := match x with Some _ => true | None => false end.

Definition is_nil {A : Type} (l : list A) : bool := match l with [] => true | _ => false end.

Definition sizes : list Source := [Source_CONFIG_AUTOTP_SIZE; Source_CONFIG_TP_SIZE; Source_CALL_TP_SIZE].
Definition dtypes : list Source := [Source_CONFIG_DTYPE; Source_PRECISION; Source_CALL_DTYPE].
Definition groups : list Source :=
  [Source_CALL_TP_GROUP; Source_MPU_TP_GROUP; Source_CONFIG_TP_GROUP; Source_MESH_TP_GROUP].

(* The sources that give a value, with the value, in the order of the list. *)
Definition given {A : Type} (at_source : Source -> option A) (sources : list Source) : list (Source * A) :=
  flat_map (fun s => match at_source s with Some v => [(s, v)] | None => [] end) sources.

Section OneInput.
Context {G D C : Type} {GG : Groups G} (i : input G D C).

(* D2: `autotp_size: 0` with no call and no `tp.tp_size` switches the section off. *)
Definition section_disabled : bool :=
  match input_section i, input_call i with
  | Some s, None =>
    match section_autotp_size s, section_tp_size s with
    | Some size, None => size =? 0
    | _, _ => false
    end
  | _, _ => false
  end.

(* The section's fields exist only when CFG (D1, D2). *)
Definition live_section : option (section G C) := if section_disabled then None else input_section i.

Definition facts_of : facts :=
  Facts (is_some (input_call i)) (is_some (bind (input_call i) call_tp_group)) (is_some live_section)
    (is_some (input_mpu i)).

(* In scope: TPI or CFG. *)
Definition in_scope : bool := is_TPI facts_of || is_CFG facts_of.

Definition size_at (s : Source) : option Z :=
  match s with
  | Source_CALL_TP_SIZE => option_map call_tp_size (input_call i)
  | Source_CONFIG_AUTOTP_SIZE => bind live_section section_autotp_size
  | Source_CONFIG_TP_SIZE => bind live_section section_tp_size
  | _ => None
  end.

Definition dtype_at (s : Source) : option DType :=
  match s with
  | Source_CALL_DTYPE => option_map call_dtype (input_call i)
  | Source_CONFIG_DTYPE => bind live_section section_dtype
  | Source_PRECISION => input_precision i
  | _ => None
  end.

Definition group_at (s : Source) : option G :=
  match s with
  | Source_CALL_TP_GROUP => bind (input_call i) call_tp_group
  | Source_MPU_TP_GROUP => option_map mpu_tp_group (input_mpu i)
  | Source_CONFIG_TP_GROUP => bind live_section section_tp_group
  | Source_MESH_TP_GROUP => input_mesh i
  | _ => None
  end.

Definition given_sizes : list (Source * Z) := given size_at sizes.
Definition given_dtypes : list (Source * DType) := given dtype_at dtypes.
Definition supplied_groups : list (Source * G) := given group_at groups.

(* --- the merge (section 4) --- *)

(* Effective size: config.autotp_size, else config.tp.tp_size, else call.tp_size. *)
Definition effective_size : option (Source * Z) :=
  match size_at Source_CONFIG_AUTOTP_SIZE with
  | Some v => Some (Source_CONFIG_AUTOTP_SIZE, v)
  | None =>
    match size_at Source_CONFIG_TP_SIZE with
    | Some v => Some (Source_CONFIG_TP_SIZE, v)
    | None => option_map (pair Source_CALL_TP_SIZE) (size_at Source_CALL_TP_SIZE)
    end
  end.

(* Effective dtype: config.dtype, else precision, else call.dtype, else unset. *)
Definition effective_dtype : Source * option DType :=
  match dtype_at Source_CONFIG_DTYPE with
  | Some v => (Source_CONFIG_DTYPE, Some v)
  | None =>
    match dtype_at Source_PRECISION with
    | Some v => (Source_PRECISION, Some v)
    | None =>
      match dtype_at Source_CALL_DTYPE with
      | Some v => (Source_CALL_DTYPE, Some v)
      | None => (Source_UNSET, None)
      end
    end
  end.

(* The TP group, from the source that the table's last column names. *)
Definition effective_group : effective G :=
  let from s := option_map (fun g => (s, Some g)) (group_at s) in
  match option_map row_group_from (row_of facts_of) with
  | Some GroupFrom_CALL => from Source_CALL_TP_GROUP
  | Some GroupFrom_MPU => from Source_MPU_TP_GROUP
  | Some GroupFrom_CONFIG =>
    match from Source_CONFIG_TP_GROUP, from Source_MESH_TP_GROUP with
    | Some found, _ => Some found
    | None, Some found => Some found
    | None, None => Some (Source_CREATED, None)
    end
  | Some GroupFrom_NOTHING | None => None
  end.

(* A group is created when CFG and no group is supplied. *)
Definition created : bool := is_CFG facts_of && is_nil supplied_groups.

(* --- the ten violations (section 4), each with its evidence --- *)

Definition differ {A : Type} (eqb : A -> A -> bool) (l : list (Source * A)) : bool :=
  existsb (fun x => existsb (fun y => negb (eqb (snd x) (snd y))) l) l.

Definition invalid_size (x : Source * Z) : bool :=
  (snd x <? 1) && negb (Source_eqb (fst x) Source_CONFIG_AUTOTP_SIZE && (snd x =? 0)).

(* The pair (call.tp_group, mpu.tp_group), which P4 decides. *)
Definition left_to_p4 (one other : Source) : bool :=
  Source_eqb one Source_CALL_TP_GROUP && Source_eqb other Source_MPU_TP_GROUP.

Fixpoint first_differing (l : list (Source * G)) : list (Source * G) :=
  match l with
  | [] => []
  | x :: rest =>
    match find (fun y => negb (left_to_p4 (fst x) (fst y)) && negb (group_eqb (snd x) (snd y))) rest with
    | Some y => [x; y]
    | None => first_differing rest
    end
  end.

Definition misfits : list (Source * G) :=
  match effective_size with
  | Some (_, n) => filter (fun x => negb (size_of (snd x) =? n)) supplied_groups
  | None => []
  end.

Definition violated (code : ViolationCode) : bool :=
  let f := facts_of in
  match code with
  | ViolationCode_NO_TP_INTENT => negb (is_TPI f) && negb (is_CFG f) && negb (is_MPU f)
  | ViolationCode_NO_GROUP_SOURCE => is_TPI f && negb (is_TPG f) && negb (is_CFG f) && negb (is_MPU f)
  | ViolationCode_GROUP_AND_MPU => is_TPG f && is_MPU f
  | ViolationCode_SIZE_MISSING => is_CFG f && is_nil given_sizes
  | ViolationCode_SIZE_INVALID => in_scope && existsb invalid_size given_sizes
  | ViolationCode_SIZE_MISMATCH => in_scope && differ Z.eqb given_sizes
  | ViolationCode_DTYPE_MISMATCH => in_scope && differ DType_eqb given_dtypes
  | ViolationCode_GROUP_IDENTITY_MISMATCH => in_scope && negb (is_nil (first_differing supplied_groups))
  | ViolationCode_GROUP_SIZE_MISMATCH => in_scope && negb (is_nil misfits)
  | ViolationCode_SIZE_NOT_DIVIDING_WORLD =>
    match effective_size with
    | Some (_, n) => created && (1 <=? n) && negb (input_world_size i mod n =? 0)
    | None => false
    end
  end.

Definition as_value {A : Type} (wrap : A -> value G) (x : Source * A) : Source * value G := (fst x, wrap (snd x)).

Definition as_evidence {A : Type} (wrap : A -> value G) : list (Source * A) -> list (Source * value G) :=
  map (as_value wrap).

Definition evidence (code : ViolationCode) : list (Source * value G) :=
  let effective := match effective_size with Some x => [as_value SizeValue x] | None => [] end in
  match code with
  | ViolationCode_NO_TP_INTENT | ViolationCode_SIZE_MISSING => []
  | ViolationCode_NO_GROUP_SOURCE | ViolationCode_SIZE_MISMATCH => as_evidence SizeValue given_sizes
  | ViolationCode_GROUP_AND_MPU => as_evidence GroupValue (firstn 2 supplied_groups)
  | ViolationCode_SIZE_INVALID => as_evidence SizeValue (filter invalid_size given_sizes)
  | ViolationCode_DTYPE_MISMATCH => as_evidence DTypeValue given_dtypes
  | ViolationCode_GROUP_IDENTITY_MISMATCH => as_evidence GroupValue (first_differing supplied_groups)
  | ViolationCode_GROUP_SIZE_MISMATCH => effective ++ as_evidence GroupValue misfits
  | ViolationCode_SIZE_NOT_DIVIDING_WORLD => effective ++ [(Source_WORLD_SIZE, SizeValue (input_world_size i))]
  end.

(* --- the decision --- *)

(* Every violation that holds, in canonical order. *)
Definition violations : list ViolationCode := filter violated ViolationCode_all.

Definition resolve : decision G D C :=
  let ok := is_nil violations in
  let where_ok {A : Type} (x : option A) := if ok then x else None in
  Decision
    (option_map row_number (row_of facts_of))
    (otherwise Outcome_ERROR (where_ok (option_map row_outcome (row_of facts_of))))
    (where_ok (option_map (fun x => (fst x, Some (snd x))) effective_size))
    (where_ok (Some effective_dtype))
    (where_ok effective_group)
    (map (fun code => (code, evidence code)) violations)
    section_disabled
    (input_world_size i)
    (bind (input_mpu i) mpu_dp_group)
    (option_map section_carried live_section).

(* AutoTP is initialised: the outcome is one of the two that start it. *)
Definition starts : bool :=
  match decision_outcome resolve with
  | Outcome_INIT_FROM_CONFIG | Outcome_INIT_FROM_CALL => true
  | Outcome_ERROR | Outcome_NO_AUTOTP => false
  end.

(* A world and every supplied group has at least one rank. *)
Definition well_typed : bool :=
  (1 <=? input_world_size i) &&
  forallb (fun g => match g with Some x => 1 <=? size_of x | None => true end)
    [bind (input_call i) call_tp_group; bind (input_section i) section_tp_group;
     option_map mpu_tp_group (input_mpu i); input_mesh i].

(* --- the prose's own decision: the outcome of P1-P2 and P4-P7, the merge of P1-P2, the disagreements of P3 --- *)

(* P1, P2: what the config says, else what the call says. *)
Definition fill {A : Type} (config call : option A) : option A := match config with Some v => Some v | None => call end.

(* D5: `tp.tp_size` is an alias of `autotp_size`. *)
Definition prose_size : option Z :=
  fill (fill (bind live_section section_autotp_size) (bind live_section section_tp_size))
    (option_map call_tp_size (input_call i)).

Definition prose_dtype : option DType :=
  fill (fill (bind live_section section_dtype) (input_precision i)) (option_map call_dtype (input_call i)).

Definition two_differ {A : Type} (eqb : A -> A -> bool) (at_source : Source -> option A) (d : disagreement) : bool :=
  existsb (fun one => existsb (fun other =>
    match at_source one, at_source other with
    | Some v, Some w => negb (eqb v w) &&
      negb (match disagreement_except d with
            | Some (a, b) => (Source_eqb one a && Source_eqb other b) || (Source_eqb one b && Source_eqb other a)
            | None => false
            end)
    | _, _ => false
    end) (disagreement_sources d)) (disagreement_sources d).

(* P3 for one field; where P7 gives no AutoTP, no difference is an error. *)
Definition disagrees (d : disagreement) : bool :=
  negb (existsb (fun r => match rule_outcome r with Some Outcome_NO_AUTOTP => true | _ => false end)
          (filter (rule_fires facts_of) rules)) &&
  match disagreement_groups d with
  | [] => two_differ Z.eqb size_at d || two_differ DType_eqb dtype_at d || two_differ group_eqb group_at d
  | against =>
    existsb (fun s => existsb (fun g =>
      match size_at s, group_at g with
      | Some v, Some w => negb (v =? size_of w)
      | _, _ => false
      end) against) (disagreement_sources d)
  end.

(* The three violations that only section 4 defines. *)
Definition section_four_only : list ViolationCode :=
  [ViolationCode_SIZE_MISSING; ViolationCode_SIZE_INVALID; ViolationCode_SIZE_NOT_DIVIDING_WORLD].

Definition prose_outcome : Outcome :=
  if existsb disagrees disagreements || existsb violated section_four_only then Outcome_ERROR
  else verdict_outcome (by_prose facts_of).

End OneInput.
