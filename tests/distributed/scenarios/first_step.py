"""What runs in a first step is counted against the plan: breaks of each kind, on all ranks and on one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from tpinit.runtime import initialize
from tpinit.runtime.parallel import collectives, fused_columns, loss
from tpinit.runtime.parallel.collectives import BoundRegion
from tpinit.runtime.training.first_step import FirstStep

from families import catalogue
from scenarios.engine import config
from support.refusals import in_step, refusal_of
from support.tiny_models import build, tokens

DOWN, UP = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj"
SUM = "all_reduce in the forward"


def unwatched(model: Any, **settings: Any) -> Any:
    """Return an engine whose model may be changed, so that only the counts find out."""
    engine, *_ = initialize(model=model, config=config(**settings))
    engine._call_check.tree = None
    return engine


def set_attribute(layer: str, **values: Any) -> Callable[[Any], object]:
    return lambda engine: engine.module.get_submodule(layer).__dict__.update(values)


def gathers_too(engine: Any) -> None:
    """Let a column-parallel layer sum its output: a collective that no plan has."""
    layer = engine.module.get_submodule(UP)
    layer.__dict__["tp_region_output"] = BoundRegion(collectives.reduce_from_tp_region, engine.groups.tp.group)


def local_statistics(kind: str, gathered: list[torch.Tensor], own: torch.Tensor, group: Any) -> None:
    for one in gathered:
        one.copy_(own)


def issue_nothing(kind: str, *_: Any, **__: Any) -> Any:
    return None


IN_FORWARD: dict[str, tuple[Callable[[Any], object], str]] = {
    "no sum": (
        set_attribute(DOWN, tp_region_output=None),
        f"{DOWN} (row): all_reduce in the forward: expected 1, saw 0",
    ),
    "no copy": (
        set_attribute(UP, tp_region_input=None, tp_fused=None),
        f"{UP} (column): region function (all_reduce in",
    ),
    "one more": (gathers_too, f"{UP} (column): {SUM}: expected 0, saw 1"),
    "no sum of the loss": (lambda _: None, "lm_head (head): all_gather in the forward: expected 1, saw 0"),
}


def break_forwards(rank: int) -> dict[str, tuple[str, str, bool]]:
    """Return the expected and the found error of a first forward, by break, and whether the ranks answer after it."""
    ids, results = tokens(), {}
    for case, (change, expected) in IN_FORWARD.items():
        engine = unwatched(build())
        change(engine)
        original = loss.issue
        if case == "no sum of the loss":
            loss.issue = local_statistics
        try:
            error = refusal_of(lambda engine=engine: engine(input_ids=ids, labels=ids))
        finally:
            loss.issue = original
        results[case] = (expected, error, in_step(rank))
    engine = unwatched(build())
    IN_FORWARD["no sum"][0](engine)
    expected = IN_FORWARD["no sum"][1]
    with torch.no_grad():
        results["evaluation"] = (expected, refusal_of(lambda: engine(input_ids=ids)), in_step(rank))
    return results


def break_backwards(rank: int) -> dict[str, tuple[str, str, bool]]:
    """Leave out the collectives of a backward pass; the error comes before the update, also in a hand-written loop."""
    results = {}
    original = collectives.issue
    for case in ("engine", "by hand", "fused"):
        model = build()
        engine = unwatched(model)
        before = copy.deepcopy(dict(model.named_parameters()))
        ids = tokens()
        if case != "fused":
            for layer in model.model.layers:
                for one in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                    one.__dict__["tp_fused"] = None
        output = engine(input_ids=ids, labels=ids)
        broken: Any = fused_columns if case == "fused" else collectives
        broken.issue = issue_nothing
        try:
            (engine.backward if case == "engine" else torch.Tensor.backward)(output.loss)
        finally:
            broken.issue = original
        error = refusal_of(engine.step if case == "engine" else engine.optimizer.step)
        kept = all(torch.equal(one, before[name]) for name, one in model.named_parameters())
        results[case] = ("all_reduce in the backward: expected ", error, kept and in_step(rank))
    return results


def break_one_rank(rank: int) -> tuple[str, bool]:
    """Let one rank alone skip the copy of a layer's input: the forward is right there, and its gradient is not."""
    engine, ids = unwatched(build()), tokens()
    if rank == 1:
        IN_FORWARD["no copy"][0](engine)
    return refusal_of(lambda: engine(input_ids=ids, labels=ids)), in_step(rank)


def break_hooks(rank: int) -> dict[str, str]:
    """Call a block of experts past its hooks, after planning."""
    results = {}
    for name in ("mixtral", "deepseek_v2"):
        model = catalogue.build(name).train()
        engine = unwatched(model)
        kind = "experts" if name == "mixtral" else "shared output"
        module = model.get_submodule(next(one.module for one in engine.plan.layers if one.kind.value == kind))
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
        batch = catalogue.batch(name, model, 0, rows=2)
        results[name] = refusal_of(partial(catalogue.loss, name, engine, batch))
    return results


def run_right_programs(rank: int) -> dict[str, tuple[str, bool, int]]:
    """Return the error of a first step, whether counting ended with it, and how many region functions were counted."""
    results = {}
    for case in RIGHT:
        seen: list[int] = []
        check = FirstStep._forward_problems

        def counting(self: Any, check: Any = check, seen: list[int] = seen) -> Any:
            seen.append(sum(self._tally.applied.values()))
            return check(self)

        FirstStep._forward_problems = counting  # type: ignore[method-assign]
        try:
            engine, error = None, ""
            model, run, options = RIGHT[case]
            engine, *_ = initialize(model=model(), config=config(**options.pop("config", {})), **options)
            error = refusal_of(lambda engine=engine, run=run: run(engine))
        finally:
            FirstStep._forward_problems = check  # type: ignore[method-assign]
        places = [module.__dict__.get(key) for module in engine.modules() for key in ("tp_place", "tp_token_place")]
        ended = all(place.tally.done and not place.tally.in_forward for place in places if place is not None)
        results[case] = (error, engine._first_step.done and ended, min(seen, default=0))
    return results


def step(engine: Any, **more: Any) -> None:
    ids = tokens()
    engine.backward(engine(input_ids=ids, labels=ids, **more).loss)
    engine.step()


def twice(engine: Any) -> None:
    for _ in range(2):
        step(engine)


def several(engine: Any) -> None:
    ids = tokens()
    losses = [engine(input_ids=ids, labels=ids).loss for _ in range(3)]
    engine.backward(torch.stack(losses).sum())
    engine.step()


def by_hand(engine: Any) -> None:
    ids = tokens()
    engine.module(input_ids=ids, labels=ids).loss.backward()
    engine.optimizer.step()


def evaluate_first(engine: Any) -> None:
    ids = tokens()
    engine.eval()
    with torch.no_grad():
        for _ in range(3):
            engine(input_ids=ids, labels=ids)
    engine.module.generate(input_ids=ids[:, :4], max_new_tokens=3, do_sample=False)
    engine.train()
    step(engine)


def loss_from_logits(engine: Any) -> None:
    ids = tokens()
    logits = engine(input_ids=ids).logits
    engine.backward(functional.cross_entropy(logits.flatten(0, 1), ids.flatten()))
    engine.step()


def with_an_error_first(engine: Any) -> None:
    refusal_of(lambda: engine(input_ids=torch.tensor([[10**6]])))
    step(engine)


def frozen(layers: int) -> Any:
    model = build()
    model.requires_grad_(False)
    for layer in model.model.layers[layers:]:
        layer.requires_grad_(True)
    return model


def checkpointed(reentrant: bool) -> Any:
    model = build()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model.train()


def compile_layers(engine: Any) -> None:
    for layer in engine.module.model.layers:
        layer.compile(backend="eager")
    twice(engine)


def compile_all(engine: Any) -> None:
    ids = tokens()
    engine.backward(torch.compile(engine.module, backend="eager")(input_ids=ids, labels=ids).loss)
    engine.step()


RIGHT: dict[str, tuple[Callable[[], Any], Callable[[Any], object], dict[str, Any]]] = {
    "plain": (build, twice, {}),
    "several forwards": (build, several, {}),
    "by hand": (build, by_hand, {}),
    "evaluation first": (build, evaluate_first, {}),
    "loss outside": (build, loss_from_logits, {}),
    "an error first": (build, with_an_error_first, {}),
    "some frozen": (lambda: frozen(1), twice, {}),
    "reentrant": (lambda: checkpointed(True), twice, {}),
    "not reentrant": (lambda: checkpointed(False), twice, {}),
    "tokens": (build, twice, {"sequence_parallel": True}),
    "checkpointed tokens": (lambda: checkpointed(False), twice, {"sequence_parallel": True}),
    "gathered logits": (build, twice, {"gather_logits": True}),
    "compiled layers": (build, compile_layers, {}),
    "compiled": (build, compile_all, {}),
}
