#!/usr/bin/env bash
# The demo of `make demo`: proves the contract, resolves two configs, and trains a sharded model. Run it through make,
# which creates the environment. It fails at the first part whose result is not the expected one.
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
    "Each line is a theorem about all sizes, dtypes, groups and worlds, not about a sample." \
    "The theorems include the resolver that parts 2 to 4 use."
"$tpinit" prove

heading "2/4  Resolve: a config that satisfies the contract, on 4 ranks" \
    "Fine-tuning a Llama in TP groups of 2 ranks. The decision needs only the file: no torch, no GPU." \
    "tpinit resolve examples/llama_tp2_bf16.json --world 4"
"$tpinit" resolve examples/llama_tp2_bf16.json --world 4

heading "3/4  Resolve: a config that contradicts itself, on 6 ranks" \
    "Every contradiction is listed with its fix; no value silently overrides another." \
    "tpinit resolve examples/qwen_conflicting.json --world 6"
status=0
"$tpinit" resolve examples/qwen_conflicting.json --world 6 || status=$?
if [ "$status" -ne 1 ]; then
    echo "demo: expected exit code 1 (violations of the contract), got $status" >&2
    exit 1
fi
printf '\nexit code %s, as expected: the config can be read, and it violates the contract.\n' "$status"

heading "4/4  Train: 2 processes train by the decision" \
    "A small Llama with random weights, sharded over 2 ranks. Each loss must equal the loss of the" \
    "unsharded model, which is printed beside it." \
    "tpinit train"
"$tpinit" train

printf '\ndemo: all 4 parts passed.\n'
