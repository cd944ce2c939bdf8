"""A training that goes on where it was, after a crash, Ctrl-C or SIGTERM.

    torchrun --nproc-per-node 2 --max-restarts 3 examples/train_resumable.py --output run

If a rank dies, torchrun starts all of them again, and they go on from the last checkpoint. After Ctrl-C or SIGTERM they
save and end; the same command goes on. The losses are those of a run that nothing disturbed: docs/faults.md.
"""

import argparse
import json
from pathlib import Path

import torch
from tpinit.runtime import initialize
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = {
    "train_micro_batch_size_per_gpu": 4,
    "tensor_parallel": {"autotp_size": 2},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5, "warmup_max_lr": 1e-3}},
}


def main() -> None:
    """Train, and save every few updates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=2)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, attention_dropout=0.1, **sizes))
    data = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 256, (64, 32))]
    # A rank that hangs is an error on all others after two minutes.
    engine, *_ = initialize(model=model, config=CONFIG, training_data=data, timeout=120)

    arguments.output.mkdir(parents=True, exist_ok=True)
    engine.load_checkpoint(arguments.output)  # does nothing at the first start
    engine.exit_on_signal(arguments.output, keep_last=2)
    while engine.global_steps < arguments.updates:
        loss = engine.train_batch()
        if engine.global_rank == 0:
            with (arguments.output / "losses.jsonl").open("a") as file:
                file.write(json.dumps({"update": engine.global_steps, "loss": float(loss)}) + "\n")
        if engine.global_steps % arguments.save_every == 0:
            engine.save_checkpoint(arguments.output, keep_last=2)
    engine.destroy()


if __name__ == "__main__":
    main()
