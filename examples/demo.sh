#!/usr/bin/env bash
# What `make demo` shows: the contract proven, two real configs decided, and a sharded model trained.
# Run through make, which makes the environment first. Fails at the first part that does not do what its heading says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tpinit="${BIN:-.venv/bin}/tpinit"

heading() {
    printf '\n================================================================================\n%s\n' "$1"
    shift
    printf '   %s\n' "$@"
    printf '================================================================================\n'
}

heading "1/4  Prove: does the contract hold for every input?" \
    "Each line below is a theorem about all sizes, dtypes, groups and worlds, not a sample of them," \
    "and about the very resolver that parts 2 to 4 use."
"$tpinit" prove

heading "2/4  Resolve: a config that is in order, on 4 ranks" \
    "Fine-tuning a Llama in pairs of ranks. Decided from the file alone: no torch, no GPU." \
    "tpinit resolve examples/llama_tp2_bf16.json --world 4"
"$tpinit" resolve examples/llama_tp2_bf16.json --world 4

heading "3/4  Resolve: a config that contradicts itself, on 6 ranks" \
    "Every contradiction is listed with its fix, instead of one of the values silently winning." \
    "tpinit resolve examples/qwen_conflicting.json --world 6"
status=0
"$tpinit" resolve examples/qwen_conflicting.json --world 6 || status=$?
if [ "$status" -ne 1 ]; then
    echo "demo: expected exit code 1 (violations of the contract), got $status" >&2
    exit 1
fi
printf '\nexit code %s, as it must be: the config was read, and it violates the contract.\n' "$status"

heading "4/4  Train: the decision carried out by 2 processes" \
    "A small Llama, randomly initialised, sharded over 2 ranks; each loss stands beside the loss of the" \
    "unsharded model, which it must equal." \
    "tpinit train"
"$tpinit" train

printf '\ndemo: all 4 parts did what their headings say.\n'
