(* The definitions as an OCaml program, extracted without any replaced constant. Groups are [concrete_groups]: a pair of
   identity and size. main.ml reads inputs and prints decisions. *)
From Coq Require Import Extraction ExtrOcamlBasic.
From TPInit Require Import Vocabulary Formulations Contract Concrete Topology Sharding.

Extraction Language OCaml.
Extraction "contract.ml" resolve prose_outcome concrete_groups DType_all Outcome_all ViolationCode_all Source_all
  tp_groups dp_groups pieces.
