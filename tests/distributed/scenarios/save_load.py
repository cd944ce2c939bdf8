"""Checkpoints of real runs: saved, loaded by the same and by other numbers of ranks, and what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import Engine, initialize
from tpinit.runtime.checkpoint.convert import Conversion, convert
from tpinit.runtime.slicing import local_part

from support.refusals import error_of, in_step
from support.tiny_models import build, tokens

ADAMW = {"type": "AdamW", "params": {"lr": 0.01, "weight_decay": 0.1}}
SGD = {"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9}}
WARMUP = {"type": "WarmupLR", "params": {"warmup_num_steps": 5, "warmup_max_lr": 0.01}}


def engine(
    tp: int,
    seed: int = 0,
    dtype: str = "fp32",
    optimizer: Any = None,
    dropout: float = 0.0,
    lora: bool = False,
    schedule: Any = None,
    **options: Any,
) -> Engine:
    """Return an engine over TP groups of `tp` ranks, with a schedule and 24 samples of data.

    An `optimizer` that is a function has only the `schedule` that is given: an entry of the config, or a function.
    """
    model: Any = build(seed=seed, attention_dropout=0.0 if lora else dropout, **options)
    if lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=dropout))
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 4 // (dist.get_world_size() // tp),
        "gradient_clipping": 1.0,
        "tensor_parallel": {"autotp_size": tp},
    }
    if not callable(optimizer):
        config |= {"optimizer": optimizer or ADAMW}
        schedule = schedule or WARMUP
    if isinstance(schedule, dict):
        config |= {"scheduler": schedule}
    if dtype != "fp32":
        config[dtype] = {"enabled": True}
    data = [{"input_ids": ids, "labels": ids} for ids in tokens(samples=24)]
    made, *_ = initialize(
        model=model,
        config=config,
        training_data=data,
        optimizer=optimizer(model) if callable(optimizer) else None,
        lr_scheduler=schedule if callable(schedule) else None,
    )
    return made


def train(made: Engine, steps: int) -> list[float]:
    """Train updates on the engine's own data; return the loss of each, averaged over the replicas."""
    losses = []
    for _ in range(steps):
        loss = made.train_batch()
        dist.all_reduce(loss)
        losses.append(float(loss) / dist.get_world_size())
    return losses


def held(made: Engine) -> dict[str, Any]:
    """Return copies of everything that decides how this rank trains on."""
    optimizer = made.optimizer
    assert optimizer is not None
    found: dict[str, Any] = {name: value.detach().clone() for name, value in made.module.named_parameters()}
    for state in made._param_states:
        found[f"master {state.record.name}"] = state.target.detach().clone()
        entry = optimizer.state.get(state.parameter, {})
        for key, value in entry.items():
            found[f"{key} {state.record.name}"] = value.clone() if isinstance(value, torch.Tensor) else value
    found["torch"] = torch.get_rng_state()
    found["lr"] = [group["lr"] for group in optimizer.param_groups]
    found["counters"] = (made.micro_steps, made.global_steps, made.skipped_steps, made.global_samples)
    found["scaler"] = made._scaler.state_dict()
    found["data"] = made.batches.state_dict() if made.batches is not None else None
    return found


def differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    names = sorted(first.keys() ^ second.keys())
    for name in first.keys() & second.keys():
        one, other = first[name], second[name]
        equal = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        names += [] if equal else [name]
    return sorted(names)


def three_and_three(rank: int, folder: str, tp: int = 2, without: str = "", **options: Any) -> dict[str, Any]:
    """Train 6 updates; train 3, save, load in a new engine, train 3 more; return what differs between the two.

    `without` leaves one part out of the load: the comparison must then find a difference.
    """
    once = engine(tp, **options)
    losses = train(once, 6)
    begun = engine(tp, **options)
    begun_losses = train(begun, 3)
    begun.save_checkpoint(folder, client_state={"epoch": 3, "best": float("inf"), "names": ("a", "b")})
    saved = held(begun)
    torch.manual_seed(7 + rank)
    resumed = engine(tp, **{**options, "seed": 1})  # other weights
    path, client = resumed.load_checkpoint(
        folder,
        load_optimizer_states=without != "optimizer",
        load_lr_scheduler_states=without != "scheduler",
        load_module_only=without == "all",
    )
    if without == "rng":
        torch.manual_seed(5)
    loaded = differing(saved, held(resumed))
    resumed_losses = train(resumed, 3)
    return {
        "path": Path(path or "").name,
        "latest": (Path(folder) / "latest").read_text(),
        "client": client,
        "loaded": loaded,
        "losses": [a - b for a, b in zip(losses, begun_losses + resumed_losses, strict=True)],
        "different": differing(held(once), held(resumed)),
        "in_step": in_step(rank),
    }


MAKERS: dict[str, Any] = {
    "adamw": lambda model: torch.optim.AdamW(
        [
            {"params": [one for one in model.parameters() if one.ndim == dims], "weight_decay": decay}
            for dims, decay in ((2, 0.1), (1, 0.0))
        ],
        lr=0.01,
        amsgrad=True,
    ),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "adafactor": lambda model: torch.optim.Adafactor(model.parameters(), lr=0.02),
    "muon": lambda model: torch.optim.Muon([one for one in model.parameters() if one.ndim == 2], lr=0.02),
}


def begin(rank: int, folder: str, tp: int, maker: str = "", **options: Any) -> dict[str, Any]:
    """Train 3 updates, save, train 3 more; return the losses of the latter and the whole weights, from rank 0."""
    made = engine(tp, optimizer=MAKERS.get(maker), **options)
    train(made, 3)
    made.save_checkpoint(folder)
    losses = train(made, 3)
    return {"losses": losses, "norm": made.get_global_grad_norm(), "in_step": in_step(rank)}


def go_on(rank: int, folder: str, tp: int, maker: str = "", **options: Any) -> dict[str, Any]:
    """Load what `begin` saved in an engine with other weights, train 3 updates and return their losses."""
    made = engine(tp, optimizer=MAKERS.get(maker), seed=1, **options)
    path, _ = made.load_checkpoint(folder)
    steps = made.global_steps
    losses = train(made, 3)
    return {
        "path": path,
        "steps": steps,
        "losses": losses,
        "norm": made.get_global_grad_norm(),
        "in_step": in_step(rank),
    }


def read_plainly(rank: int, folder: str, tp: int) -> list[str]:
    """Save, and read the folder with torch's own loader; return the names of the tensors that differ."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    made = engine(tp)
    train(made, 1)
    made.save_checkpoint(folder, tag="one")
    whole = {record.name: torch.empty(record.shape) for record in made.plan.parameters}
    read: dict[str, Any] = {f"model.{name}": value for name, value in whole.items()}
    load(read, storage_reader=FileSystemReader(Path(folder) / "one"))
    parameters = dict(made.module.named_parameters())
    return [
        record.name
        for record in made.plan.parameters
        if not torch.equal(
            local_part(read[f"model.{record.name}"], record, made.plan.tp_size, made.plan.tp_rank),
            parameters[record.name],
        )
    ]


SCHEDULES: dict[str, Any] = {
    "cosine": {"type": "WarmupCosineLR", "params": {"total_num_steps": 8, "warmup_num_steps": 2}},
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "exponential": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
}


def through_deepspeed(
    rank: int, folder: str, maker: str, other: str, dtype: str, schedule: str, strange: str
) -> dict[str, Any]:
    """Train 6 updates; train 3, save, go through DeepSpeed's files of 3 ranks and back, load, and train 3 more.

    In 16 bits the files of DeepSpeed have the fp32 copies. Returns what differs, the errors of a run with the `other`
    optimizer and of one with the `strange` schedule, and what differs without the state of the schedule.
    """
    base, half = Path(folder), torch.bfloat16 if dtype == "bf16" else None
    options: dict[str, Any] = {"dtype": dtype, "schedule": SCHEDULES[schedule]}
    once, begun = (engine(2, optimizer=MAKERS[maker], **options) for _ in range(2))
    losses = train(once, 6)
    begun_losses = train(begun, 3)
    begun.save_checkpoint(base / "run")
    said: list[str] = []
    if rank == 0:
        build().save_pretrained(base / "model")  # type: ignore[operator]  # transformers' method
        to_deepspeed = Conversion("deepspeed", model=base / "model", tp_size=3, masters=half is not None)
        convert(base / "run", base / "deepspeed", to_deepspeed, said.append)
        convert(base / "deepspeed", base / "back", Conversion("tpinit", dtype=half), said.append)
    dist.barrier()
    resumed = engine(2, seed=1, optimizer=MAKERS[maker], **options)
    resumed.load_checkpoint(base / "back")
    assert resumed.batches is not None
    assert begun.batches is not None
    resumed.batches.seek(begun.batches.epoch, begun.batches.index)
    loaded = differing(held(begun), held(resumed))
    resumed_losses = train(resumed, 3)
    refused = [
        engine(2, optimizer=MAKERS[other], **options),
        engine(2, optimizer=MAKERS[maker], dtype=dtype, schedule=SCHEDULES[strange]),
    ]
    unscheduled = engine(2, seed=1, optimizer=MAKERS[maker], **options)
    unscheduled.load_checkpoint(base / "back", load_lr_scheduler_states=False)
    train(unscheduled, 3)
    return {
        "said": said,
        "loaded": loaded,
        "losses": [a - b for a, b in zip(losses, begun_losses + resumed_losses, strict=True)],
        "different": differing(held(once), held(resumed)),
        "refused": [error_of(lambda: one.load_checkpoint(base / "back"))["text"] for one in refused],  # noqa: B023
        "without": differing(held(once), held(unscheduled)),
        "in_step": in_step(rank),
    }


def load_converted(rank: int, folder: str, tp: int) -> dict[str, Any]:
    """Load a converted bf16 model with master copies; return the whole state, and why a whole run is not in it."""
    made = engine(tp, seed=5, dtype="bf16")
    refused = error_of(lambda: made.load_checkpoint(folder))
    made.load_checkpoint(folder, load_module_only=True)
    state = made._consolidated_16bit_state_dict()
    masters = {
        state.record.name: state.target.detach().clone() for state in made._param_states if state.record.dim is None
    }
    losses = train(made, 2)
    return {"state": state, "refused": refused, "masters": masters, "finite": all(loss > 0 for loss in losses)}


def export(rank: int, folder: str) -> list[int]:
    """Save a bf16 run, and the unsharded model's directory beside it; return the logits' shape."""
    made = engine(2, dtype="bf16", tie_word_embeddings=True)
    train(made, 4)  # the schedule begins with two updates at rate 0
    made.save_checkpoint(Path(folder) / "run")
    made.module.save_pretrained(Path(folder) / "model")
    return list(made.module.lm_head.weight.shape)
