"""What the ranks of a world run on a kind of device. The same scenarios run on the CPU in `make test`."""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
import warnings
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize
from tpinit.runtime.groups.digest import digest
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training.gradient_parts import plain_gradient
from transformers import GPT2Config, GPT2LMHeadModel

from support.refusals import refusal_of
from support.tiny_models import build, tokens

STEPS = 5
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_of(kind: str) -> torch.device:
    return torch.device("cpu") if kind == "cpu" else torch.device(kind, torch.cuda.current_device())


def started(model: Any, kind: str, dtype: str = "fp32", **settings: Any) -> Any:
    """Return an engine over all ranks. The model goes to the device here: a gloo group leaves one on the CPU there."""
    section = {dtype: {"enabled": True, "initial_scale_power": 8}} if dtype == "fp16" else {dtype: {"enabled": True}}
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}},
        "tensor_parallel": {"autotp_size": dist.get_world_size()},
        **({} if dtype == "fp32" else section),
        **settings,
    }
    return initialize(model=model.to(device_of(kind)), config=config, dist_init_required=False)[0]


def batch(kind: str, step: int) -> dict[str, torch.Tensor]:
    ids = tokens(step).to(device_of(kind))
    return {"input_ids": ids, "labels": ids}


def update(engine: Any, kind: str, step: int) -> float:
    loss = engine(**batch(kind, step)).loss
    engine.backward(loss)
    engine.step()
    return float(loss.detach())


def chosen(rank: int, kind: str) -> dict[str, Any]:
    """The device of the engine, and a batch that is left on the CPU."""
    engine = started(build(), kind)
    on_cpu = {name: value.cpu() for name, value in batch(kind, 0).items()}
    return {
        "device": str(engine.device),
        "current": str(device_of(kind)),
        "reason": str(engine.device_choice),
        "batch on the CPU": refusal_of(lambda: engine(**on_cpu)),
        "parameters": sorted({str(one.device) for one in engine.module.parameters()}),
    }


def exact(rank: int, kind: str, dtype: str) -> dict[str, Any]:
    """How far losses and weights are from the unsharded model's after `STEPS` updates, relative."""
    model = build()
    whole = copy.deepcopy(model).to(device_of(kind), _DTYPES[dtype])
    masters = [one.detach().float().requires_grad_() for one in whole.parameters()]
    optimizer = torch.optim.SGD(masters, lr=0.1, momentum=0.9)
    engine = started(model, kind, dtype)
    worst = 0.0
    for step in range(STEPS):
        loss = whole(**batch(kind, step)).loss
        loss.backward()
        for master, one in zip(masters, whole.parameters(), strict=True):
            master.grad, one.grad = one.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            for master, one in zip(masters, whole.parameters(), strict=True):
                one.copy_(master)
        worst = max(worst, abs(update(engine, kind, step) / float(loss.detach()) - 1))
    return {"loss": worst, "weights": _distance(engine, whole), "skipped": engine.skipped_steps}


def _distance(engine: Any, whole: Any) -> float:
    """Return the largest relative distance of a local parameter from its slice of the whole one."""
    expected, held = dict(whole.named_parameters()), dict(engine.module.named_parameters())
    group = engine.groups.tp
    distances = []
    for record in engine.plan.parameters:
        right = local_part(expected[record.name].detach(), record, group.size, group.position).float()
        distances.append(float((held[record.name].detach().float() - right).norm() / right.norm().clamp(min=1e-6)))
    return max(distances)


def _gpt2() -> Any:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**sizes, use_cache=False, resid_pdrop=0.2, embd_pdrop=0.2)).train()


def dropout(rank: int, kind: str) -> dict[str, Any]:
    """Replicated parameters after updates with dropout, by a script that seeds every rank by its number."""
    engine = started(_gpt2(), kind, gradient_clipping=0)
    others = _other_states(kind)
    torch.manual_seed(100 + rank)
    reseeded = _other_states(kind)
    losses = [update(engine, kind, step) for step in range(3)]
    replicated = {
        record.name: digest(dict(engine.module.named_parameters())[record.name])
        for record in engine.plan.parameters
        if record.dim is None
    }
    return {"losses": losses, "replicated": replicated, "others": len(others), "kept": _other_states(kind) == reseeded}


def _other_states(kind: str) -> list[list[int]]:
    """Return the RNG states of the GPUs that this rank sees and does not train on."""
    if kind == "cpu":
        return []
    own = torch.cuda.current_device()
    return [torch.cuda.get_rng_state(index).tolist() for index in range(torch.cuda.device_count()) if index != own]


def rng_states(rank: int, kind: str) -> dict[str, Any]:
    """Losses with dropout again from saved RNG states, and gradients of recomputed layers beside kept ones."""
    engine, device = started(_gpt2(), kind, gradient_clipping=0), device_of(kind)
    saved = torch.get_rng_state(), None if kind == "cpu" else torch.cuda.get_rng_state(device)

    def losses() -> list[float]:
        return [float(engine(**batch(kind, step)).loss.detach()) for step in range(3)]

    def restore() -> None:
        torch.set_rng_state(saved[0])
        if saved[1] is not None:
            torch.cuda.set_rng_state(saved[1], device)

    first, following = losses(), losses()
    restore()
    again = losses()
    gradients = []
    for recompute in (False, True):
        restore()
        if recompute:
            engine.module.gradient_checkpointing_enable({"use_reentrant": False})
        engine.module.zero_grad()
        engine(**batch(kind, 0)).loss.backward()
        gradients.append(
            [plain_gradient(one.grad).clone() for one in engine.module.parameters() if one.grad is not None]
        )
    distance = max(float((one - other).norm() / (one.norm() + 1e-6)) for one, other in zip(*gradients, strict=True))
    return {"first": first, "again": again, "following": following, "recomputed": distance}


def generated(rank: int, kind: str) -> dict[str, Any]:
    """Tokens of greedy and of sampled generation, and the unsharded model's greedy ones."""
    model = build().eval()
    whole = copy.deepcopy(model).to(device_of(kind))
    engine = started(model, kind)
    engine.eval()
    prompt = tokens(1)[:, :4].to(device_of(kind))
    options = {"max_new_tokens": 6, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    torch.manual_seed(rank)
    with torch.no_grad():
        return {
            "greedy": engine.module.generate(prompt, do_sample=False, **options).tolist(),
            "whole": whole.generate(prompt, do_sample=False, **options).tolist(),
            "sampled": engine.module.generate(prompt, do_sample=True, **options).tolist(),
        }


def saved(rank: int, kind: str) -> dict[str, Any]:
    """A sharded model that is written whole, and read again on the first rank."""
    model = build()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    engine = started(model, kind)
    names: list[Any] = [tempfile.mkdtemp(prefix="tpinit-saved-") if rank == 0 else None]
    dist.broadcast_object_list(names, src=0)
    engine.module.save_pretrained(names[0])
    differences = 0.0
    if rank == 0:
        read = type(build()).from_pretrained(names[0])
        differences = max(float((one - before[name]).abs().max()) for name, one in read.named_parameters())
        shutil.rmtree(names[0])
    return {"parameters": len(before), "difference": differences}


def memory(rank: int, kind: str) -> dict[str, Any]:
    """The peak of a training step, sharded and unsharded, in bytes; zeros on the CPU, which keeps no count."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 8}
    peaks = []
    for sharded in (False, True):
        model = build(**sizes)
        if kind != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if sharded:
            engine = started(model, kind)
            if kind != "cpu":
                torch.cuda.reset_peak_memory_stats()  # the start holds the whole model for a moment
            update(engine, kind, 0)
            del engine
        else:
            model = model.to(device_of(kind))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            model(**batch(kind, 0)).loss.backward()
            optimizer.step()
            del optimizer
        peaks.append(torch.cuda.max_memory_allocated() if kind != "cpu" else 0)
        del model
    return {"whole": peaks[0], "sharded": peaks[1]}


def host_waits(rank: int, kind: str) -> dict[str, int]:
    """How often the host waited for the GPU in a backward and in a step, by torch's debug mode; -1 on the CPU."""
    if kind == "cpu":
        return {"backward": -1, "step": -1}
    engine = started(build(), kind)
    update(engine, kind, 0)
    loss = engine(**batch(kind, 1)).loss
    found = {}
    for name, call in (("backward", lambda: engine.backward(loss)), ("step", engine.step)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found[name] = sum("synchroniz" in str(one.message) for one in caught)
    return found


def ended(rank: int, kind: str) -> dict[str, Any]:
    """An engine that is destroyed beside another one that goes on."""
    engine, other = started(build(), kind), started(build(), kind)
    engine.destroy()
    logging.getLogger("tpinit").debug("the other engine goes on")
    return {"refused": refusal_of(lambda: engine(**batch(kind, 0))), "loss": update(other, kind, 0)}
