"""What the checks of docs/checks.md cost, as parts of a training step of a small Llama on two ranks.

torchrun --nproc-per-node 2 tests/benchmarks/check_cost.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize
from transformers import LlamaConfig, LlamaForCausalLM

STEPS = 30


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2048,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=4,
        )
    )
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "tensor_parallel": {"autotp_size": dist.get_world_size() if dist.is_initialized() else 2},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
    }
    engine = initialize(model=model, config=config)[0]
    ids = torch.randint(0, 2048, (4, 128))

    def step() -> None:
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()

    check = engine._call_check
    kwargs: dict[str, Any] = {"input_ids": ids, "labels": ids}
    training = median(step)
    inputs = median(lambda: check.compare("forward", model, model.forward, (), kwargs))
    tree: Any = check.tree
    changes = median(lambda: tree.changes(model))
    replicas = median(lambda: engine._replica_check.after(engine._replica_check.every))
    if dist.get_rank() == 0:
        print(f"comparing the inputs of a forward: {inputs / training:.2%} of a step")
        print(f"looking for changes of the model: {changes / training:.2%} of a step, a part of the line above")
        print(f"comparing the copies of parameters: {replicas / training:.2%} of a step, every 100 updates")
    dist.destroy_process_group()


def median(function: Callable[[], None]) -> float:
    """Return the median duration of a call in seconds, all ranks together."""
    times = []
    for _ in range(STEPS):
        dist.barrier()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
