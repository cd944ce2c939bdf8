"""The study of DeepSpeed: what its `tp_model_init` and `initialize` do, compared with the contract.

`python -m studies.deepspeed` (with `tests` on the path; `make deepspeed` runs it) writes docs/deepspeed-0.19.8.md and
the file of known failures. It drives the adapter `tpinit.conformance.adapters.deepspeed`, which the wheel has; the
wheel does not have the study.
"""
