"""What `initialize` keeps, what the engine refuses, precision, configs, data, optimizers and schedules."""

from __future__ import annotations

import copy
import os
import warnings
import weakref
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize, set_autotp_mode, tp_model_init
from tpinit.runtime.init.call_registry import recorded_call

from scenarios.training import OPTIMIZERS, relative_distance
from support.process_groups import Mpu, my_group
from support.refusals import error_of, in_step
from support.tiny_models import build, tokens


def config(**more: Any) -> dict[str, Any]:
    world = dist.get_world_size()
    return {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0,
        "optimizer": OPTIMIZERS["sgd"],
        "tensor_parallel": {"autotp_size": world},
        **more,
    }


def train(engine: Any, steps: int = 3, dp_parts: int = 1) -> list[float]:
    losses = []
    for step in range(steps):
        ids = tokens(step)
        loss = engine(input_ids=ids, labels=ids).loss
        losses.append(float(loss.detach()))
        engine.backward(loss)
        engine.step()
    return losses


def keep_user_model(rank: int) -> dict[str, Any]:
    """Return what of the user's model `initialize` keeps: objects, names, ties, flags, buffers, hooks, mode."""
    model = build(tie_word_embeddings=True)
    model.model.norm.weight.requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    model.eval()
    linear = model.model.layers[0].self_attn.q_proj
    calls: list[tuple[int, ...]] = []
    model.model.layers[0].mlp.register_forward_hook(lambda *seen: calls.append(tuple(seen[2].shape)))
    modules = {name: id(module) for name, module in model.named_modules()}
    parameters = {name: id(one) for name, one in model.named_parameters()}
    flags = {name: one.requires_grad for name, one in model.named_parameters()}
    buffers = {name: (one.clone(), id(one)) for name, one in model.named_buffers()}
    engine, optimizer, loader, scheduler = initialize(model=model, config=config())
    ids = tokens()
    engine(input_ids=ids)
    return {
        "module": engine.module is model,
        "modules": modules == {name: id(module) for name, module in model.named_modules()},
        "parameters": parameters == {name: id(one) for name, one in model.named_parameters()},
        "flags": flags == {name: one.requires_grad for name, one in model.named_parameters()},
        "buffers": all(
            torch.equal(one, buffers[name][0]) and id(one) == buffers[name][1] for name, one in model.named_buffers()
        ),
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
        "names": [record.names for record in engine.plan.parameters if len(record.names) > 1],
        "eval": not model.training and not engine.training,
        "hook": calls,
        "linear": isinstance(linear, torch.nn.Linear) and linear.out_features == 32 // dist.get_world_size(),
        "rest": (optimizer is engine.optimizer, loader, scheduler),
    }


def train_in_low_precision(rank: int, dtype: str, fp16: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train in a low precision beside fp32 and return dtypes and losses of both."""
    model = build()
    whole = copy.deepcopy(model)
    more: dict[str, Any] = {}
    if fp16 is not None:
        more["fp16"] = {"enabled": True, **fp16}
    elif dtype == "bf16":
        more["bf16"] = {"enabled": True}
    engine, *_ = initialize(model=model, config=config(**more))
    reference = torch.optim.SGD(whole.parameters(), lr=0.05, momentum=0.9)
    apart = []
    scales = [engine.loss_scale()]
    for step in range(4):
        ids = tokens(step)
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        scales.append(engine.loss_scale())
        expected = whole(input_ids=ids, labels=ids).loss
        expected.backward()
        apart.append(abs(float(loss.detach()) / float(expected.detach()) - 1))
        norm = float(torch.nn.utils.clip_grad_norm_(whole.parameters(), float("inf")))
        reference.step()
        reference.zero_grad()
    masters = [state.target.detach() for state in engine._param_states]
    weights = list(engine.module.parameters())
    return {
        "parameters": sorted({str(one.dtype) for one in weights}),
        "masters": sorted({str(one.dtype) for one in masters}),
        "published": all(
            torch.equal(master.to(weight.dtype), weight) for master, weight in zip(masters, weights, strict=True)
        ),
        "buffers": sorted({str(one.dtype) for one in engine.module.buffers()}),
        "apart": max(apart),
        "norm": (engine.get_global_grad_norm() or 0) / norm,
        "scales": scales,
        "skipped": engine.skipped_steps,
    }


def compare_replicas(rank: int) -> dict[str, Any]:
    """Train in bf16 over tp 2 and dp 2; return the parameters whose replicas are not equal bit for bit."""
    model = build()
    engine, _, _, _ = initialize(model=model, config=config(bf16={"enabled": True}, tensor_parallel={"autotp_size": 2}))
    for step in range(3):
        ids = tokens(10 * step + engine.groups.data_index)
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    named = dict(engine.module.named_parameters())
    unequal = []
    for record in engine.plan.parameters:
        group = engine.groups.dp.group if record.dim is not None else None
        size = dist.get_world_size(group)
        copies = [torch.empty_like(named[record.name]) for _ in range(size)]
        dist.all_gather(copies, named[record.name].detach(), group=group)
        if any(not torch.equal(one, copies[0]) for one in copies):
            unequal.append(record.name)
    return {"unequal": unequal}


def record_calls(rank: int) -> dict[str, Any]:
    """Call tp_model_init again, wrongly, and around initialize (D9); return the errors and what was recorded."""
    world = dist.get_world_size()
    group, twin = my_group([list(range(world))], rank), my_group([list(range(world))], rank)
    model, other = build(), build()
    errors: dict[str, Any] = {"other model": error_of(partial(tp_model_init, other, 1, "bf16"))}
    returned = tp_model_init(model, world, torch.float32, tp_group=group)
    errors["same again"] = error_of(lambda: tp_model_init(model, world, "fp32", tp_group=group))
    errors["size"] = error_of(lambda: tp_model_init(model, 1, "fp32", tp_group=group))
    errors["dtype"] = error_of(lambda: tp_model_init(model, world, "bf16", tp_group=group))
    errors["group"] = error_of(lambda: tp_model_init(model, world, "fp32", tp_group=twin))
    errors["no group"] = error_of(lambda: tp_model_init(model, world, "fp32"))
    errors["keyword"] = error_of(lambda: tp_model_init(model, world, "fp32", tp_gruop=group))
    errors["dtype word"] = error_of(lambda: tp_model_init(build(), world, "int8"))
    errors["not a model"] = error_of(lambda: tp_model_init("model", world, "fp32"))  # type: ignore[arg-type]  # wrong on purpose
    set_autotp_mode(training=True)

    # A failed initialize leaves the record, so that the corrected one still has it.
    plain = config()
    del plain["tensor_parallel"]
    errors["first try"] = error_of(lambda: initialize(model=model, config={**plain, "amp": {"enabled": True}}))
    still = recorded_call(model) is not None
    engine, _, _, _ = initialize(model=model, config=plain)
    row = engine.decision.row
    consumed = recorded_call(model) is None and recorded_call(other) is not None
    errors["again"] = error_of(lambda: initialize(model=model, config=plain))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tp_model_init(model, world, "fp32")
    gone = weakref.ref(other)
    del other
    return {
        "returned": returned is model,
        "errors": errors,
        "still": still,
        "row": row,
        "consumed": consumed,
        "warned": [str(one.message) for one in caught],
        "weak": gone() is None,
    }


def read_configs(rank: int, folder: str) -> dict[str, Any]:
    """Pass the config in each of its places; return the batch sizes, and whether the config is unchanged."""
    from types import SimpleNamespace

    path = os.path.join(folder, "ds.json")
    rows = {}
    given = config(train_batch_size=8, gradient_accumulation_steps=2, tensor_parallel={"autotp_size": 2})
    del given["train_micro_batch_size_per_gpu"]
    before = copy.deepcopy(given)
    for place, arguments in {
        "config": {"config": given},
        "config_params": {"config_params": given},
        "args": {"args": SimpleNamespace(deepspeed_config=path)},
        "path": {"config": path},
    }.items():
        engine, _, _, _ = initialize(model=build(), **arguments)
        sizes = (
            engine.train_batch_size(),
            engine.train_micro_batch_size_per_gpu(),
            engine.gradient_accumulation_steps(),
        )
        rows[place] = (engine.decision.row, sizes)
    return {"rows": rows, "kept": given == before}


def feed_data(rank: int) -> dict[str, Any]:
    """Train from the loader of `initialize`, with two divisions into TP groups; return which samples each rank saw."""
    dataset = [{"input_ids": ids, "labels": ids} for ids in tokens(0, samples=16)]
    loaders = []
    for groups in ([[0, 1], [2, 3]], [[0, 3], [1, 2]]):
        model = build()
        tp_model_init(model, 2, "fp32", tp_group=my_group(groups, rank))
        plain = config()
        del plain["tensor_parallel"]
        engine, _, loader, _ = initialize(model=model, config=plain, training_data=dataset)
        seen = []
        for batch in loader:
            engine.backward(engine(**batch).loss)
            engine.step()
            seen += [tuple(row.tolist()) for row in batch["input_ids"]]
        loaders.append((engine.groups.tp.ranks, seen, engine.global_steps))
    return {"loaders": loaders, "all": sorted(tuple(one["input_ids"].tolist()) for one in dataset)}


def run_on_different_inputs(rank: int) -> dict[str, Any]:
    """Run different batches on the ranks of one TP group; return the error."""
    model = build()
    engine, _, _, _ = initialize(model=model, config=config(tensor_parallel={"autotp_size": 2}))
    ids = tokens(seed=rank if rank < 2 else 5)
    error = error_of(lambda: engine(input_ids=ids, labels=ids))
    return {**error, "collective": in_step(rank)}


def call_out_of_order(rank: int) -> dict[str, Any]:
    """Call the engine out of order, and without an optimizer; return the errors, and what an orderly run counts."""
    engine, _, _, _ = initialize(model=build(), config=config(gradient_accumulation_steps=2))
    errors = {"step first": error_of(engine.step)}
    ids = tokens()
    errors["a number"] = error_of(lambda: engine.backward(3.0))
    errors["logits"] = error_of(lambda: engine.backward(engine(input_ids=ids).logits))
    errors["detached"] = error_of(lambda: engine.backward(engine(input_ids=ids).logits.mean().detach()))
    boundaries, norms = [], []
    for _ in range(4):
        boundaries.append(engine.is_gradient_accumulation_boundary())
        loss = engine(input_ids=ids, labels=ids).loss
        scaled = engine.backward(loss)
        engine.step()
        norms.append(engine.get_global_grad_norm())
    plain = config()
    del plain["optimizer"]
    bare, optimizer, _, _ = initialize(model=build(), config=plain)
    errors["no optimizer"] = error_of(lambda: bare.backward(bare(input_ids=ids, labels=ids).loss))
    return {
        "errors": errors,
        "boundaries": boundaries,
        "norms": [norm is not None for norm in norms],
        "scaled": float(scaled) / float(loss.detach()),
        "steps": (engine.global_steps, engine.micro_steps),
        "bare": optimizer,
        "lr": engine.get_lr(),
        "text": (str(engine.plan).splitlines()[2], engine.plan.to_json()["parameters"][1]),  # type: ignore[index]  # JSON
    }


def train_with_user_optimizer(rank: int, how: str) -> dict[str, Any]:
    """Train with an optimizer and a schedule that the user made over the unsharded parameters, before initialize."""
    model = build()
    whole = copy.deepcopy(model)
    plain = config()
    del plain["optimizer"]
    decayed = [one for one in model.parameters() if one.ndim == 2]
    rest = [one for one in model.parameters() if one.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    arguments: dict[str, Any] = {}
    if how == "object":
        mine = torch.optim.AdamW(groups, lr=1e-3, eps=1e-6)
        arguments = {"optimizer": mine, "lr_scheduler": torch.optim.lr_scheduler.StepLR(mine, 2, gamma=0.1)}
    elif how == "callable":
        arguments = {
            "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, eps=1e-6),
            "model_parameters": groups,
            "lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1),
        }
    engine, optimizer, _, scheduler = initialize(model=model, config=plain, **arguments)
    whole_groups = [
        {"params": [one for one in whole.parameters() if one.ndim == 2], "weight_decay": 0.1},
        {"params": [one for one in whole.parameters() if one.ndim != 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(whole_groups, lr=1e-3, eps=1e-6)
    schedule = torch.optim.lr_scheduler.StepLR(reference, 2, gamma=0.1)
    apart = []
    for step in range(4):
        ids = tokens(step)
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        expected = whole(input_ids=ids, labels=ids).loss
        expected.backward()
        reference.step()
        schedule.step()
        reference.zero_grad()
        apart.append(relative_distance(loss.detach(), expected.detach()))
    return {
        "apart": max(apart),
        "same": how != "object" or (optimizer is arguments["optimizer"] and scheduler is arguments["lr_scheduler"]),
        "rate": [round(rate, 9) for rate in engine.get_lr()],
    }


def learning_rates(rank: int, kind: str) -> list[float]:
    """Return the learning rates of each step under a schedule of the config."""
    params: dict[str, Any] = {"warmup_min_lr": 0.0, "warmup_max_lr": 0.1, "warmup_num_steps": 4}
    if kind == "WarmupDecayLR":
        params |= {"total_num_steps": 8, "warmup_type": "linear"}
    engine, _, _, _ = initialize(model=build(), config=config(scheduler={"type": kind, "params": params}))
    rates = []
    for step in range(9):
        rates.append(engine.get_lr()[0])
        ids = tokens(step)
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    return rates


def train_with_unused_parameters(rank: int) -> dict[str, Any]:
    """Use different parameters on the data-parallel ranks; return whether they averaged without a hang."""
    model = build()
    engine, _, _, _ = initialize(model=model, config=config(tensor_parallel={"autotp_size": 1}))
    ids = tokens()
    hidden = engine.module.model(input_ids=ids).last_hidden_state if rank == 0 else None
    weight = engine.module.lm_head.weight
    loss = engine.module.lm_head(hidden).square().mean() if hidden is not None else weight.square().mean()
    engine.backward(loss)
    grad = engine.module.model.norm.weight.grad
    return {"grad": grad is not None and float(grad.abs().sum()) > 0, "collective": in_step(rank)}


def train_row_2(rank: int, how: str) -> dict[str, Any]:
    """Run row 2 under another kind of model parallelism: ranks 0,1 and ranks 2,3 average, each pair its own model."""
    pairs, others = my_group([[0, 1], [2, 3]], rank), my_group([[0, 2], [1, 3]], rank)
    model = build(seed=rank if how == "replicas differ" else rank // 2)
    plain = config(gradient_clipping=1.0 if how == "clipping" else 0.0)
    del plain["tensor_parallel"]
    engines: list[Any] = []
    error = error_of(lambda: engines.append(initialize(model=model, config=plain, mpu=Mpu(others, pairs))[0]))
    return {**error, "losses": train(engines[0]) if engines else [], "collective": in_step(rank)}
