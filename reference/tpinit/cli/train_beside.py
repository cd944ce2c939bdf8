"""The comparison of `tpinit train`: a small sharded Llama, trained beside the same model unsharded."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from tpinit.runtime.training.engine import Engine

__all__ = ["beside_config", "train_beside"]

_LENGTH = 32  # tokens per sample
_MICRO = 2  # samples per micro batch, unless the config sets it
_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-2}  # relative, on the loss


def train_beside(arguments: argparse.Namespace) -> int:
    """Train both models and compare their losses. Raises TpinitError if the run is refused."""
    import copy

    import torch
    from tpinit.reference.explain import explain
    from tpinit.runtime import initialize, tp_model_init

    model = _model()
    unsharded = copy.deepcopy(model)
    if arguments.tp_size is not None:
        tp_model_init(model, arguments.tp_size, arguments.dtype or "fp32")
    config = beside_config(arguments, int(os.environ["WORLD_SIZE"]))
    optimizer: Any = None
    if not _names_optimizer(config):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    engine, _, _, _ = initialize(model=model, optimizer=optimizer, config=config)
    print(f"device\n\n  {engine.device_choice}\n")
    print(f"decision\n\n{_indented(explain(engine.decision))}\n\nplan\n\n{_indented(str(engine.plan))}\n", flush=True)
    return _compare(engine, unsharded, arguments.steps)


def _model() -> nn.Module:
    """Return the model, with the same weights in every process and every run."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=256,
        max_position_embeddings=_LENGTH,
        use_cache=False,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model.to(torch.float32).train()


def beside_config(arguments: argparse.Namespace, world_size: int) -> Any:
    """Return the config: the path that was given, else a section for this world."""
    if arguments.config is not None:
        return arguments.config
    section: dict[str, object] = {}
    if arguments.tp_size is None:
        section = {"autotp_size": world_size, "dtype": arguments.dtype or "fp32"}
    return {
        "train_micro_batch_size_per_gpu": _MICRO,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        "tensor_parallel": section,
    }


def _names_optimizer(config: Any) -> bool:
    from tpinit.reference.config import read_config

    try:
        return read_config(config).config.get("optimizer") is not None
    except ValueError:
        return True  # malformed: initialize raises the error on all ranks


def _compare(engine: Engine, unsharded: nn.Module, steps: int) -> int:
    """Train the engine on every rank and the unsharded model on rank 0; print both losses. Return the exit code."""
    import torch
    import torch.distributed as dist
    from tpinit.runtime.training.optimizers import build_optimizer
    from tpinit.runtime.training.schedules import build_schedule

    first = dist.get_rank() == 0
    settings = engine.settings
    unsharded.to(engine.device)
    reference: Any = torch.optim.AdamW(unsharded.parameters(), lr=1e-3, weight_decay=0.0)
    if settings.optimizer is not None:
        reference = build_optimizer(settings.optimizer, unsharded.parameters())
    schedule = build_schedule(settings.scheduler, reference) if settings.scheduler is not None else None
    tolerance = _TOLERANCE[engine.decision.dtype.value.value if engine.decision.dtype.value is not None else "fp32"]
    worst = 0.0
    print("step    sharded loss  unsharded loss  relative difference")
    batch = _batch(engine)  # the same in every step, so that the loss falls
    for step in range(steps):
        sharded = _sharded_step(engine, batch)
        if not first:
            continue
        loss = unsharded(input_ids=batch.flatten(0, 2), labels=batch.flatten(0, 2)).loss
        loss.backward()
        if settings.clipping:
            torch.nn.utils.clip_grad_norm_(unsharded.parameters(), settings.clipping)
        reference.step()
        reference.zero_grad()
        if schedule is not None:
            schedule.step()
        expected = float(loss.detach())
        error = abs(sharded - expected) / abs(expected)
        worst = max(worst, error) if error == error else float("inf")
        print(f"{step + 1:4d}  {sharded:14.8f}  {expected:14.8f}  {error:19.1e}", flush=True)
    dist.barrier()
    equal = worst <= tolerance
    word = "equal" if equal else "DIFFERENT"
    print(f"\n{word}: over {steps} steps the losses differ by at most {worst:.1e} relative (tolerance {tolerance:.0e})")
    return 0 if equal else 1


def _batch(engine: Engine) -> torch.Tensor:
    """Return the tokens of one update: [data-parallel ranks, micro batches, samples, length]."""
    import torch
    import torch.distributed as dist

    parts = dist.get_world_size() // engine.groups.tp.size
    shape = (parts, engine.gradient_accumulation_steps(), engine.train_micro_batch_size_per_gpu() or _MICRO, _LENGTH)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator).to(engine.device)


def _sharded_step(engine: Engine, batch: torch.Tensor) -> float:
    """Run one update on this rank's part of the batch and return the mean loss over all of it."""
    import torch
    import torch.distributed as dist

    total = torch.zeros((), device=engine.device)
    for ids in batch[engine.groups.data_index]:
        loss = engine(input_ids=ids, labels=ids).loss
        total += engine.backward(loss)
        engine.step()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
