"""Ranks of a TP group that call a model differently, or alike in other words; and whose random states differ."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations, pairwise
from typing import Any

import numpy
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.checkpoint import checkpoint
from tpinit.runtime import GatheredParameters, initialize
from tpinit.runtime.internals.torch_private import local_gloo_group
from tpinit.runtime.parallel.rng import SharedRng
from tpinit.runtime.training.gradient_parts import plain_gradient

from families import catalogue
from support.family_training import SGD
from support.refusals import error_of, in_step
from support.tiny_models import build, tokens


def engine_of(model: Any, **keywords: Any) -> Any:
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": dist.get_world_size()},
    }
    return initialize(model=model, config=config, **keywords)[0]


def train(engine: Any, ids: torch.Tensor) -> None:
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()


def among_other_groups(rank: int) -> bool:
    """Train one step with TP groups of two, while three of the four ranks have one more group than the fourth."""
    ranks = [0, 1, 2]
    other = local_gloo_group(ranks, "a group that the fourth rank does not know", None) if rank in ranks else None
    config = {"train_micro_batch_size_per_gpu": 2, "optimizer": SGD, "tensor_parallel": {"autotp_size": 2}}
    engine = initialize(model=build(), config=config)[0]
    train(engine, tokens(rank // 2))
    if other is not None:
        dist.destroy_process_group(other)
    return in_step(rank)


def different_calls(rank: int) -> dict[str, Any]:
    """Return what each different call raised, after two steps that were alike on all ranks."""
    engine = engine_of(build())
    for step in range(2):
        train(engine, tokens(step))
    module, ids = engine.module, tokens(2)
    longer = torch.cat([ids, ids[:, : 3 * rank]], 1)
    other = tokens(2 + rank)

    def without_gradients() -> Any:
        with torch.set_grad_enabled(rank == 0):
            return engine(input_ids=ids)

    def in_evaluation() -> Any:
        engine.train(rank == 0)
        try:
            return engine(input_ids=ids)
        finally:
            engine.train()

    def under_autocast() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=rank == 0):
            return engine(input_ids=ids)

    def with_a_frozen_weight() -> Any:
        module.lm_head.weight.requires_grad_(rank == 0)
        try:
            return engine(input_ids=ids)
        finally:
            module.lm_head.weight.requires_grad_(True)

    def one_generates() -> Any:
        return module.generate(ids, max_new_tokens=2, do_sample=False) if rank else engine(input_ids=ids)

    calls: dict[str, Callable[[], Any]] = {
        "values": lambda: engine(input_ids=other),
        "length": lambda: engine(input_ids=longer),
        "module": lambda: module(input_ids=other),
        "labels": lambda: engine(input_ids=ids, labels=other),
        "one label less": lambda: engine(input_ids=ids, **({"labels": ids} if rank else {})),
        "a mask": lambda: engine(input_ids=ids, attention_mask=torch.arange(12).expand(2, 12) >= rank),
        "a flag": lambda: engine(input_ids=ids, output_attentions=rank == 0),
        "embeddings": lambda: engine(inputs_embeds=torch.ones(2, 4, 32) * (1 + rank)),
        "gradients": without_gradients,
        "evaluation": in_evaluation,
        "autocast": under_autocast,
        "frozen": with_a_frozen_weight,
        "generate": one_generates,
        "generated tokens": lambda: module.generate(ids, max_new_tokens=2 + rank, do_sample=False),
    }
    errors = {name: error_of(call) for name, call in calls.items()}
    return {"errors": errors, "collective": in_step(rank), "after": error_of(lambda: train(engine, ids))}


def a_step_that_one_rank_leaves_out(rank: int, updates: int) -> dict[str, Any]:
    """Rank 0 goes on to the next forward while the other updates, behind so many updates alike."""
    engine, ids = engine_of(build()), tokens()
    for step in range(updates):
        train(engine, tokens(step))
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    error = error_of(engine.step if rank else lambda: engine(input_ids=ids, labels=ids))
    engine.zero_grad()
    return {"error": error, "collective": in_step(rank), "after": error_of(lambda: train(engine, ids))}


def other_options(rank: int, by_hand: bool) -> dict[str, Any]:
    """Rank 0 lowers its learning rate, and does so on the other rank after that was refused."""
    engine, ids = engine_of(build()), tokens()

    def update() -> None:
        loss = engine(input_ids=ids, labels=ids).loss
        loss.backward() if by_hand else engine.backward(loss)
        engine.optimizer.step() if by_hand else engine.step()
        engine.zero_grad()

    update()
    before = [parameter.detach().clone() for parameter in engine.module.parameters()]
    if rank == 0:
        engine.optimizer.param_groups[0]["lr"] = 0.01
    error = error_of(update)
    unchanged = all(map(torch.equal, before, engine.module.parameters()))
    engine.zero_grad()
    engine.optimizer.param_groups[0]["lr"] = 0.01
    return {"error": error, "unchanged": unchanged, "collective": in_step(rank), "after": error_of(update)}


def pairs_of_calls(rank: int, folder: str) -> dict[str, Any]:
    """Rank 0 makes one call of a pair, and the other rank the other one: return what was raised."""
    engine, ids = engine_of(build()), tokens()
    module = engine.module
    up, down = (module.get_parameter(f"model.layers.0.mlp.{name}_proj.weight") for name in ("up", "down"))
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: engine(input_ids=ids),
        "step": engine.step,
        "generate": lambda: module.generate(ids, max_new_tokens=2),
        "clip_grad_norm_": lambda: engine.clip_grad_norm_(1.0),
        "torch's clip_grad_norm_": lambda: torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0),
        "sum_over_parameters": lambda: engine.sum_over_parameters({"model.layers.0.mlp.up_proj.weight": up.pow(2)}),
        "other terms": lambda: engine.sum_over_parameters({"model.layers.0.mlp.down_proj.weight": down.pow(2)}),
        "GatheredParameters": lambda: GatheredParameters(up).__enter__(),
        "other parameters": lambda: GatheredParameters([up, down]).__enter__(),
        "save_pretrained": lambda: module.save_pretrained(folder),
        "a whole state dict": lambda: get_model_state_dict(module, options=StateDictOptions(full_state_dict=True)),
        "_consolidated_16bit_state_dict": engine._consolidated_16bit_state_dict,
    }
    errors = {}
    for pair in combinations(calls, 2):
        engine.zero_grad()
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        errors[" / ".join(pair)] = error_of(calls[pair[rank]])["type"]
    engine.zero_grad()
    return {"errors": errors, "collective": in_step(rank), "after": error_of(lambda: train(engine, ids))}


def equal_calls(rank: int) -> dict[str, Any]:
    """Return what calls raised that mean the same on all ranks, in other words on each."""
    engine = engine_of(build())
    ids = tokens(2)
    calls: dict[str, Callable[[], Any]] = {
        "int32": lambda: engine(input_ids=ids.int() if rank else ids),
        "a mask of ones": lambda: engine(input_ids=ids, **({"attention_mask": torch.ones_like(ids)} if rank else {})),
        "position": lambda: engine(ids) if rank else engine(input_ids=ids),
        "none": lambda: engine(input_ids=ids, **({"position_ids": None} if rank else {})),
        "strides": lambda: engine(input_ids=ids.t().contiguous().t() if rank else ids),
        "generate": lambda: engine.module.generate(ids, max_new_tokens=3, num_beams=2),
    }
    errors = {name: error_of(call)["text"] for name, call in calls.items()}
    engine.eval()
    with torch.no_grad():
        engine(input_ids=ids)
    engine.train()
    train(engine, ids)
    return {"errors": errors, "collective": in_step(rank)}


def unchecked(rank: int, every: int) -> dict[str, Any]:
    """Return which of four forwards with other ids on each rank raised; the config and the call ask for it in turn."""
    config = {"tensor_parallel": {"autotp_size": 2}, "tpinit": {"check_inputs_every": every}}
    engines = (initialize(model=build(), config=config)[0], engine_of(build(), check_inputs_every=every))
    return {
        "types": [
            error_of(lambda each=engine: each(input_ids=tokens(5 + rank)))["type"]
            for engine in engines
            for _ in range(4)
        ]
    }


# --- random numbers --------------------------------------------------------------------------------------

DISTURBANCES: dict[str, Callable[[int], Any]] = {
    "seed": lambda rank: torch.manual_seed(7 + rank),
    "torch": lambda rank: torch.randperm(10) if rank == 0 else None,
    "python": lambda rank: random.random() if rank == 0 else None,
    "numpy": lambda rank: numpy.random.rand() if rank == 0 else None,
    "state": lambda rank: torch.set_rng_state(torch.Generator().manual_seed(rank).get_state()),
}


def drifting(rank: int, broken: bool = False) -> dict[str, Any]:
    """Train GPT-2 with dropout, with each disturbance in turn before a step; return how many copies differ."""
    if broken:
        original, SharedRng.enter = SharedRng.enter, lambda *_: None  # type: ignore[assignment, method-assign]  # a control
    try:
        engine = engine_of(catalogue.build("gpt2", embd_pdrop=0.2, resid_pdrop=0.2, attn_pdrop=0.2))
        masks: list[torch.Tensor] = []
        engine.module.transformer.drop.register_forward_hook(lambda *seen: masks.append((seen[2] == 0).clone()))
        for step, disturb in enumerate(DISTURBANCES.values()):
            disturb(rank)
            batch = catalogue.batch("gpt2", engine.module, step, rows=2)
            engine.backward(catalogue.loss("gpt2", engine, batch))
            if not broken:
                engine.step()
            else:
                engine.zero_grad()
                engine._awaits_step = False
    finally:
        if broken:
            SharedRng.enter = original  # type: ignore[method-assign]  # the control ends
    mine = torch.stack(masks)
    first = mine.clone()
    dist.broadcast(first, 0)
    return {
        "different masks": int((first != mine).flatten(1).any(1).sum()),
        "repeated masks": sum(torch.equal(one, other) for one, other in pairwise(masks)),
        "apart": unequal(engine),
    }


def unequal(engine: Any) -> int:
    """Return how many replicated parameters differ from those of the first rank."""
    held, count = dict(engine.module.named_parameters()), 0
    for record in engine.plan.parameters:
        if record.dim is None:
            first = held[record.name].detach().clone()
            dist.broadcast(first, 0)
            count += int(not torch.equal(first, held[record.name].detach()))
    return count


def states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist()


def restored(rank: int) -> dict[str, Any]:
    """Return whether the caller's states come back after a forward, one that raises, and one without draws."""
    model = catalogue.build("gpt2", embd_pdrop=0.2)
    engine = engine_of(model)
    batch = catalogue.batch("gpt2", model, 0, rows=2)
    for seed in (torch.manual_seed, random.seed, numpy.random.seed):
        seed(100 + rank)
    host = states()[1:]
    engine(**batch)
    found = {
        "one draw": torch.get_rng_state().tolist() != torch.Generator().manual_seed(100 + rank).get_state().tolist()
    }
    torch.manual_seed(100 + rank)
    torch.rand(())
    after_one = states()[0]
    torch.manual_seed(100 + rank)
    engine(**batch)
    found["torch"] = states()[0] == after_one
    found["host"] = states()[1:] == host

    def fail(*_: Any) -> None:
        raise ValueError("in the forward")

    handle = model.transformer.ln_f.register_forward_pre_hook(fail)
    torch.manual_seed(100 + rank)
    found["raised"] = error_of(lambda: engine(**batch))["text"] == "in the forward"
    found["after raising"] = states()[0] == after_one
    handle.remove()
    engine.eval()
    before = states()
    engine(**batch)
    found["evaluation"] = states() == before
    return found


def checkpointed(rank: int, reentrant: bool) -> dict[str, Any]:
    """Return how far gradients are from those of a plain backward, with the whole module checkpointed."""
    engine = engine_of(catalogue.build("gpt2", embd_pdrop=0.2, resid_pdrop=0.2, attn_pdrop=0.2))
    batch = catalogue.batch("gpt2", engine.module, 0, rows=2)
    weight, gradients = engine.module.transformer.wpe.weight, []
    embeddings = torch.randn(2, 6, engine.module.config.n_embd, generator=torch.Generator().manual_seed(3))
    for again in (False, True):
        torch.manual_seed(50 + rank)

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            return engine.module(inputs_embeds=hidden).logits

        hidden = embeddings.clone().requires_grad_(True)
        output = checkpoint(forward, hidden, use_reentrant=reentrant) if again else forward(hidden)
        output.square().sum().backward()
        gradients.append(plain_gradient(weight.grad).clone())
        engine.zero_grad()
    return {"apart": float((gradients[0] - gradients[1]).abs().max()), "size": float(gradients[0].abs().max()), **batch}


def sampled(rank: int) -> dict[str, Any]:
    """Return the tokens that ranks with other seeds sample, by `generate` and, as a control, by that of the class."""
    model = build(use_cache=True).eval()
    engine = engine_of(model)
    ids = tokens(1)[:, :4]
    torch.manual_seed(20 + rank)
    drawn = [engine.module.generate(ids, max_new_tokens=8, do_sample=True, temperature=2.0) for _ in range(2)]
    drawn.append(engine.module.generate(ids, max_new_tokens=8, do_sample=True, num_beams=2))
    greedy = engine.module.generate(ids, max_new_tokens=8, do_sample=False)
    torch.manual_seed(20 + rank)
    control = error_of(lambda: type(model).generate(model, ids, max_new_tokens=8, do_sample=True, temperature=2.0))
    torch.manual_seed(3)
    alike = engine.module.generate(ids, max_new_tokens=8, do_sample=True)
    return {
        "drawn": [one.tolist() for one in drawn],
        "greedy": greedy.tolist(),
        "control": control["type"],
        "alike": alike.tolist(),
    }
