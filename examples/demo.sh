#!/usr/bin/env bash
# The demo of `make demo`: proves the contract, resolves two configs, trains sharded models, and generates. Run it through make,
# which creates the environment. It fails at the first part whose result is not the expected one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tpinit="${BIN:-.venv/bin}/tpinit"
python="${BIN:-.venv/bin}/python"

heading() {
    printf '\n================================================================================\n%s\n' "$1"
    shift
    printf '   %s\n' "$@"
    printf '================================================================================\n'
}

heading "1/5  Prove: does the contract hold for every input?" \
    "Each line is a theorem about all sizes, dtypes, groups and worlds, not about a sample." \
    "The theorems include the resolver that parts 2 to 5 use."
"$tpinit" prove

heading "2/5  Resolve: a config that satisfies the contract, on 4 ranks" \
    "Fine-tuning a Llama in TP groups of 2 ranks. The decision needs only the file: no torch, no GPU." \
    "tpinit resolve examples/llama_tp2_bf16.json --world 4"
"$tpinit" resolve examples/llama_tp2_bf16.json --world 4

heading "3/5  Resolve: a config that contradicts itself, on 6 ranks" \
    "Every contradiction is listed with its fix; no value silently overrides another." \
    "tpinit resolve examples/qwen_conflicting.json --world 6"
status=0
"$tpinit" resolve examples/qwen_conflicting.json --world 6 || status=$?
if [ "$status" -ne 1 ]; then
    echo "demo: expected exit code 1 (violations of the contract), got $status" >&2
    exit 1
fi
printf '\nexit code %s, as expected: the config can be read, and it violates the contract.\n' "$status"

heading "4/5  Train: 2 processes train by the decision" \
    "A small Llama with random weights, sharded over 2 ranks. Each loss must equal the loss of the" \
    "unsharded model, which is printed beside it." \
    "tpinit train"
"$tpinit" train

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
heading "5/5  Fine-tune: a model directory, lines of text, and a model directory that generates" \
    "A tiny Llama with random weights learns the Zen of Python, sharded over 2 ranks; plain transformers then reads" \
    "what was saved, unsharded, and must go on with the Zen." \
    "tpinit train --model model --data zen.jsonl --output tuned --tp-size 2 --epochs 25 --lr 1e-2 --micro-batch 5"
"$python" examples/tiny_model.py "$folder"
"$tpinit" train --model "$folder/model" --data "$folder/zen.jsonl" --output "$folder/tuned" \
    --tp-size 2 --epochs 25 --lr 1e-2 --micro-batch 5 --log-every 20
said=$("$python" examples/generate.py "$folder/tuned" "Beautiful is")
printf '\nplain transformers, asked to go on after "Beautiful is": %s\n' "$said"
if [ "$said" != "Beautiful is better than ugly." ]; then
    echo "demo: expected 'Beautiful is better than ugly.'" >&2
    exit 1
fi

printf '\ndemo: all 5 parts passed.\n'
