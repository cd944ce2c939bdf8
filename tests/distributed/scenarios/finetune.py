"""Fine-tuning over real ranks: interrupted and resumed, and beside plain transformers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime.finetune import tune as module
from tpinit.runtime.finetune.lines import LineFile
from tpinit.runtime.finetune.metrics import read_metrics
from tpinit.runtime.finetune.options import TuneOptions
from tpinit.runtime.finetune.rows import collate_for, make_rows
from tpinit.runtime.training.data import EndlessBatches

from support.tuning import write_tiny

STEPS, MICRO, ACCUMULATION, LENGTH = 6, 4, 2, 16


def options(folder: Path, name: str, tp_size: int, **values: Any) -> TuneOptions:
    config = {
        "train_micro_batch_size_per_gpu": MICRO,
        "gradient_accumulation_steps": ACCUMULATION,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 2, "total_num_steps": "auto"}},
        "tensor_parallel": {"autotp_size": tp_size, "dtype": "fp32"},
    }
    paths = {"model": folder / "model", "data": folder / "zen.jsonl", "output": folder / name}
    return TuneOptions(**paths, config=config, steps=STEPS, length=LENGTH, seed=3, **values)


def runs(rank: int, folder: str, tp_size: int) -> dict[str, Any] | None:
    """Train six updates at once; then six that a signal to rank 1 interrupts after three. Return what both left."""
    base = Path(folder)
    if rank == 0:
        write_tiny(base)
    dist.barrier()
    whole = module.tune(options(base, "whole", tp_size))
    update = module._update

    def interrupt(engine: Any, *rest: Any) -> Any:
        if rank == 1 and engine.global_steps == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(engine, *rest)

    module._update = interrupt  # type: ignore[assignment]
    try:
        stopped = module.tune(options(base, "parts", tp_size))
    finally:
        module._update = update
    unfinished = sorted(one.name for one in (base / "parts").iterdir())
    torch.manual_seed(99)  # the checkpoint has the right one
    resumed = module.tune(options(base, "parts", tp_size, resume=True))
    if rank:
        return None
    return {
        "codes": (whole, stopped, resumed),
        "unfinished": unfinished,
        "losses": [[page["loss"] for page in read_metrics(base / name)] for name in ("whole", "parts")],
        "tokens": [[page["tokens"] for page in read_metrics(base / name)] for name in ("whole", "parts")],
        "different": [
            name
            for name, value in weights(base / "whole").items()
            if not torch.equal(value, weights(base / "parts")[name])
        ],
        "files": sorted(one.name for one in (base / "whole").iterdir()),
        "checkpoints": sorted(one.name for one in (base / "parts" / "checkpoints").iterdir()),
        "plain": beside_transformers(base),
    }


def refusals(rank: int, folder: str) -> list[str]:
    """Go on with other data, train on different data on the two ranks, and where rank 0 can't write: the errors."""
    base = Path(folder)
    other = options(base, "parts", 2)
    cases = (
        TuneOptions(**{**fields(other), "seed": 4}),
        TuneOptions(**{**fields(other), "output": base / "new", "data": base / f"data{rank}.jsonl"}),
    )
    (base / f"data{rank}.jsonl").write_text(f'{{"text": "rank {rank}"}}\n')
    if rank == 0:
        (base / "blocked" / "checkpoints").mkdir(parents=True)
        (base / "blocked" / "metrics.new").mkdir()  # in the place of a file
    blocked = TuneOptions(**{**fields(other), "output": base / "blocked"})
    return [error_of(one) for one in (*cases, blocked)]


def error_of(one: TuneOptions) -> str:
    try:
        module.tune(one)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def fields(one: TuneOptions) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def beside_transformers(base: Path) -> dict[str, Any]:
    """Train the same batches in plain transformers and torch, and compare what the run of two ranks saved."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base / "model")
    rows = make_rows(LineFile(base / "zen.jsonl"), tokenizer, LENGTH, pack=False, everything=False, vocabulary=384)
    plain = AutoModelForCausalLM.from_pretrained(base / "model").train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0)
    rates = [page["lr"] for page in read_metrics(base / "whole")]
    sampler = torch.utils.data.DistributedSampler(rows, num_replicas=1, rank=0, seed=3)
    loader = torch.utils.data.DataLoader(rows, MICRO, sampler=sampler, collate_fn=collate_for(tokenizer, 1))
    batches, losses = EndlessBatches(loader), []
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        total = sum(plain(**next(batches)).loss / ACCUMULATION for _ in range(ACCUMULATION))
        total.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(total.detach()))
    tuned = AutoModelForCausalLM.from_pretrained(base / "whole").eval()
    written = AutoTokenizer.from_pretrained(base / "whole")
    ids = written("Beautiful is", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in (plain.eval(), tuned)]
    return {
        "losses": losses,
        "logits": float((logits[0] - logits[1]).abs().max()),
        "text": written.decode(tuned.generate(ids)[0]),
        "plain text": written.decode(plain.generate(ids)[0]),
        "new tokens": tuned.generation_config.max_new_tokens,
        "template": written.chat_template == tokenizer.chat_template,
        "moved": float(
            (plain.lm_head.weight - AutoModelForCausalLM.from_pretrained(base / "model").lm_head.weight).abs().max()
        ),
    }
