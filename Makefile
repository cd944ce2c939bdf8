# All commands of the project. Every target creates the environment that it needs.
#   make help     lists the targets
# Variables: PYTHON (the interpreter that creates .venv), PYTEST_ARGS (added to every pytest run).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
PYTEST_ARGS ?=
MUTATE_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
EXTRAS := proofs,runtime,hf,conformance,dev
# An install writes the stamp last, so that an incomplete environment is installed again.
STAMP := $(VENV)/.installed
# Real DeepSpeed, which the study compares with the contract, in an environment of its own: tpinit does not depend on it.
DEEPSPEED_VENV := .venv-deepspeed
DEEPSPEED_STAMP := $(DEEPSPEED_VENV)/.installed
DEEPSPEED := 0.19.8
DEEPSPEED_BEFORE := 0.17.6
DEEPSPEED_ARGS ?= --document docs/deepspeed-$(DEEPSPEED).md --known tests/tpinit/conformance/known/deepspeed-$(DEEPSPEED).json --reproductions docs/reproductions --own --older $(CURDIR)/$(DEEPSPEED_VENV)/before
# accelerate, without which transformers refuses to shard a model: in a folder of its own, for that peer only.
BENCH_PATH := $(VENV)/bench
BENCH_STAMP := $(BENCH_PATH)/.installed
ACCELERATE := 1.15.0
BENCH_ARGS ?= --document docs/benchmarks.md --plot docs/benchmarks.svg --json docs/benchmarks.json
MODELS_ARGS ?= --document docs/models.md
COQ_ARGS ?=
# The oldest and the newest minor of transformers that pyproject.toml allows; the tests of everything else run on the pinned one.
TRANSFORMERS_MINORS := 5.20.0 5.24.0
TRANSFORMERS_TESTS := tests/integration/runtime/test_torch_private.py tests/integration/runtime/test_transformers_private.py tests/integration/runtime/test_planner.py tests/integration/runtime/test_meta_init.py tests/integration/runtime/test_call_table.py
TRANSFORMERS_RANKS := tests/distributed/test_families.py -k "two_ranks and (llama] or gpt2] or mixtral] or phi3] or t5])"
PORTIONS := spec reference step cli runtime proofs decision_tables conformance

# The ranks of a distributed test share few cores: one thread each, unless the caller says otherwise.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1

.PHONY: help venv demo test test-gpu test-starts test-faults test-transformers lint prove planted coq coq-tools mutate deepspeed deepspeed-env bench models clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## Create the environment in .venv, with the exact versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else f"tpinit needs Python 3.10 or newer; $(PYTHON) is {v.major}.{v.minor}. Say: make PYTHON=python3.11")'
	@rm -f $(STAMP)
	@echo "== Environment: $(VENV) (a few minutes the first time; the pinned versions are in constraints.txt)"
	@$(PYTHON) -m venv $(VENV)
	@echo "-- torch"
	@$(PIP) install --quiet --quiet "$$(grep '^torch==' constraints.txt)"
	@echo "-- tpinit[$(EXTRAS)]"
	@$(PIP) install --quiet --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@$(BIN)/tpinit --version
	@touch $(STAMP)

demo: $(STAMP) ## Prove the contract, resolve two configs, train a model sharded over two ranks
	@BIN=$(BIN) bash examples/demo.sh

test: $(STAMP) ## Run all tests: single-process ones first, then those that start ranks
	@echo "== Units and properties"
	@$(BIN)/python -m pytest --numprocesses 2 tests/unit tests/property $(PYTEST_ARGS)
	@echo "== Tools, command line, packaging, browser"
	@$(BIN)/python -m pytest --numprocesses 2 tests/integration tests/cli tests/browser $(PYTEST_ARGS)
	@echo "== Tests that start ranks"
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadscope tests/distributed $(PYTEST_ARGS)

test-transformers: $(TRANSFORMERS_MINORS:%=$(VENV)/transformers-%/.installed) ## Run what leans on transformers with its oldest and newest minor
	@for version in $(TRANSFORMERS_MINORS); do \
		echo "== transformers $$version"; \
		PYTHONPATH=$(CURDIR)/$(VENV)/transformers-$$version $(BIN)/python -m pytest --numprocesses 2 $(TRANSFORMERS_TESTS) $(PYTEST_ARGS); \
		PYTHONPATH=$(CURDIR)/$(VENV)/transformers-$$version $(BIN)/python -m pytest $(TRANSFORMERS_RANKS) $(PYTEST_ARGS); \
	done

$(VENV)/transformers-%/.installed: $(STAMP)
	@rm -rf $(@D)
	@$(PIP) install --quiet --quiet --no-deps --target $(@D) transformers==$*
	@touch $@

test-starts: $(STAMP) ## Check the protocol of a start for four ranks in every order, and 300 drawn starts of real ranks
	@TPINIT_TEST_STARTS=300 $(BIN)/python -m pytest tests/unit/runtime/init/test_start.py tests/distributed/test_start_protocol.py $(PYTEST_ARGS)

test-gpu: $(STAMP) ## Train on the GPUs of this host, if it has any, and print what was covered
	@echo "== GPUs"
	@$(BIN)/python -m pytest -m gpu tests/gpu $(PYTEST_ARGS)

test-faults: $(STAMP) ## Kill one of four ranks at random, 100 times, and print how the others end (TPINIT_KILL_TRIALS, _SEED)
	@echo "== Faults"
	@TPINIT_KILL_TRIALS=$${TPINIT_KILL_TRIALS:-100} TPINIT_KILL_RANKS=4 $(BIN)/python -m pytest -s tests/distributed/test_kill_trials.py $(PYTEST_ARGS)

lint: $(STAMP) ## Check style, types, and which package imports which
	@echo "== ruff check"
	@$(BIN)/ruff check .
	@echo "== ruff format --check"
	@$(BIN)/ruff format --check .
	@echo "== mypy --strict"
	@$(BIN)/mypy --strict $(PORTIONS:%=-p tpinit.%) -p studies -p benchmarks
	@echo "== lint-imports"
	@$(BIN)/lint-imports --no-logo

prove: $(STAMP) ## Prove every theorem of the contract
	@$(BIN)/tpinit prove

coq: $(STAMP) coq-tools ## Check the kernel-checked core with Coq, and compare its decision with the resolver (COQ_ARGS)
	@$(BIN)/python -m tpinit.proofs.coq check $(COQ_ARGS)

coq-tools: ## Install Coq and OCaml if they are missing (Debian, as root)
	@missing=; for tool in coqc coqchk ocamlopt; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "make: not installed:$$missing. fix: sudo apt-get install coq ocaml-nox (Debian 12 has Coq 8.16)" >&2; exit 2; \
	fi; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends coq ocaml-nox >/dev/null

deepspeed: $(STAMP) $(DEEPSPEED_STAMP) ## Compare real DeepSpeed with the contract and write its page (DEEPSPEED_ARGS=--smoke: a part of it)
	@PYTHONPATH=tests TPINIT_DEEPSPEED_PYTHON=$(CURDIR)/$(DEEPSPEED_VENV)/bin/python $(BIN)/python -m studies.deepspeed $(DEEPSPEED_ARGS)

# For `tpinit conform --impl deepspeed` and for tests/distributed/test_deepspeed_adapter.py.
deepspeed-env: $(DEEPSPEED_STAMP) ## Make only the environment with real DeepSpeed

$(DEEPSPEED_STAMP): constraints.txt
	@rm -f $(DEEPSPEED_STAMP)
	@echo "== Environment: $(DEEPSPEED_VENV), with deepspeed $(DEEPSPEED)"
	@$(PYTHON) -m venv $(DEEPSPEED_VENV)
	@$(DEEPSPEED_VENV)/bin/python -m pip install --quiet --quiet --constraint constraints.txt setuptools wheel ninja torch transformers
	@DS_BUILD_OPS=0 $(DEEPSPEED_VENV)/bin/python -m pip install --quiet --quiet --no-build-isolation deepspeed==$(DEEPSPEED)
	@DS_BUILD_OPS=0 $(DEEPSPEED_VENV)/bin/python -m pip install --quiet --quiet --no-build-isolation --no-deps --target $(DEEPSPEED_VENV)/before deepspeed==$(DEEPSPEED_BEFORE)
	@touch $(DEEPSPEED_STAMP)

bench: $(STAMP) $(DEEPSPEED_STAMP) $(BENCH_STAMP) ## Measure a training step beside DeepSpeed, transformers and torch, and write the page (BENCH_ARGS)
	@PYTHONPATH=tests TPINIT_DEEPSPEED_PYTHON=$(CURDIR)/$(DEEPSPEED_VENV)/bin/python TPINIT_BENCH_PATH=$(CURDIR)/$(BENCH_PATH) $(BIN)/python -m benchmarks $(BENCH_ARGS)

models: $(STAMP) $(DEEPSPEED_STAMP) $(BENCH_STAMP) ## Shard every model of the catalogue with tpinit, DeepSpeed and transformers, and write the page (MODELS_ARGS)
	@PYTHONPATH=tests:$(BENCH_PATH) TPINIT_DEEPSPEED_PYTHON=$(CURDIR)/$(DEEPSPEED_VENV)/bin/python $(BIN)/python -m families.sweep $(MODELS_ARGS)

$(BENCH_STAMP): $(STAMP)
	@rm -rf $(BENCH_PATH)
	@$(PIP) install --quiet --quiet --constraint constraints.txt --no-deps --target $(BENCH_PATH) accelerate==$(ACCELERATE) psutil
	@touch $(BENCH_STAMP)

planted: $(STAMP) ## Plant bugs in the proven modules, one after another; both semantics must reject each
	@TPINIT_PLANTED=all $(BIN)/python -m pytest --numprocesses 2 tests/unit/proofs/test_planted_bugs.py $(PYTEST_ARGS)

mutate: $(STAMP) ## Run every mutant of the contract and a sample of the mutants of the code (MUTATE_ARGS)
	@$(BIN)/tpinit mutate $(MUTATE_ARGS)

clean: ## Remove the environment and all generated files
	rm -rf $(VENV) $(DEEPSPEED_VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
