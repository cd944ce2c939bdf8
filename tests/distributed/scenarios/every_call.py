"""Each name of the tables of calls that is right or guarded, called on a sharded model and on an unsharded one."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from tpinit.runtime import initialize
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training.call_guards import REFUSED
from tpinit.runtime.training.gradient_parts import plain_gradient

from families import catalogue
from support.pairs import pair
from support.refusals import in_step, refusal_of
from support.tiny_models import build, tokens

Check = Callable[[Any, Any], object]


def same(engine: Any, unsharded: Any) -> bool:
    """Return whether a forward and backward give the same loss and gradients."""
    models = (engine.module, unsharded)
    losses = []
    for model in models:
        model.zero_grad()
        output = model(input_ids=tokens(), labels=tokens())
        if output.loss.requires_grad:
            output.loss.backward()
        losses.append(float(output.loss.detach()))
    held, plan = dict(engine.module.named_parameters()), engine.plan
    gaps = [abs(losses[0] - losses[1])]
    for record in plan.parameters:
        whole, own = unsharded.get_parameter(record.name).grad, held[record.name].grad
        own = None if own is None else plain_gradient(own)
        if (whole is None) != (own is None):
            return False
        if whole is not None and own is not None:
            gaps.append(float((local_part(whole, record, plan.tp_size, plan.tp_rank) - own).abs().max()))
    return max(gaps) < 1e-5


def both(name: str, *args: Any, **kwargs: Any) -> Check:
    """Return a check that calls a method on both models, and compares what they compute then."""

    def check(engine: Any, unsharded: Any) -> bool:
        for model in (engine.module, unsharded):
            getattr(model, name)(*args, **kwargs)
        return same(engine, unsharded)

    return check


def _forward(engine: Any, unsharded: Any) -> bool:
    with torch.no_grad():
        found = [model.forward(input_ids=tokens()).logits for model in (engine, engine.module, unsharded)]
    return max(float((one - found[-1]).abs().max()) for one in found) < 1e-5


def _unchanged(*names: str) -> Check:
    def check(engine: Any, unsharded: Any) -> bool:
        results = [getattr(engine.module, name)() is engine.module for name in names]
        return all(results) and same(engine, unsharded)

    return check


def _to(engine: Any, _: Any) -> bool:
    module = engine.module
    return module.to("cpu", torch.float32) is module and module.model.to(torch.zeros(1)) is module.model


def _refused(*calls: Callable[[Any], Any]) -> Check:
    return lambda engine, _: all(refusal_of(lambda c=call: c(engine)).startswith("EngineError") for call in calls)


def _apply(engine: Any, unsharded: Any) -> bool:
    seen: list[nn.Module] = []
    engine.module.apply(seen.append)
    written = refusal_of(lambda: engine.module.apply(_draw))
    return len(seen) == len(list(unsharded.modules())) and "GatheredParameters" in written and same(engine, unsharded)


def _draw(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)


def _freeze(engine: Any, unsharded: Any) -> bool:
    layers = [model.model.layers[0] for model in (engine.module, unsharded)]
    results = []
    for flag in (False, True):
        for layer in layers:
            layer.requires_grad_(flag)
        results.append(same(engine, unsharded))
    return all(results)


def _counts(engine: Any, unsharded: Any) -> bool:
    return all(
        engine.module.num_parameters(**options) == unsharded.num_parameters(**options)
        for options in ({}, {"only_trainable": True}, {"exclude_embeddings": True})
    )


MODULE: dict[str, Check] = {
    "forward": _forward,
    "eval": both("eval"),
    "train": both("train"),
    "zero_grad": both("zero_grad"),
    "requires_grad_": _freeze,
    "float": _unchanged("float"),
    "cpu": _unchanged("cpu"),
    "to": _to,
    "apply": _apply,
    "register_parameter": _refused(
        lambda engine: engine.module.register_parameter("more", nn.Parameter(torch.zeros(1))),
        lambda engine: setattr(engine.module.lm_head, "weight", nn.Parameter(torch.zeros(32, 32))),
        lambda engine: engine.register_parameter("more", nn.Parameter(torch.zeros(1))),
    ),
    "double": _refused(lambda engine: engine.module.double(), lambda engine: engine.module.model.double()),
    "half": _refused(lambda engine: engine.module.half(), lambda engine: engine.half()),
    "bfloat16": _refused(lambda engine: engine.module.bfloat16(), lambda engine: engine.module.to(torch.bfloat16)),
    "cuda": _refused(lambda engine: engine.module.cuda(), lambda engine: engine.cuda(0)),
    "xpu": _refused(lambda engine: engine.module.xpu(), lambda engine: engine.xpu()),
    "ipu": _refused(lambda engine: engine.module.ipu(), lambda engine: engine.ipu()),
    "mtia": _refused(lambda engine: engine.module.mtia(), lambda engine: engine.mtia()),
}
TRANSFORMERS: dict[str, Check] = {
    "num_parameters": _counts,
    "gradient_checkpointing_enable": both("gradient_checkpointing_enable"),
    "gradient_checkpointing_disable": both("gradient_checkpointing_disable"),
    "activation_checkpointing_enable": both("gradient_checkpointing_enable", {"use_reentrant": True}),
    "activation_checkpointing_disable": both("gradient_checkpointing_disable"),
    "enable_input_require_grads": both("enable_input_require_grads"),
    "disable_input_require_grads": both("disable_input_require_grads"),
    "set_attn_implementation": both("set_attn_implementation", "sdpa"),
    "tie_weights": both("tie_weights"),
}


def module_calls(rank: int) -> dict[str, Any]:
    """Run the checks of nn.Module's and transformers' names."""
    unsharded, engine = pair()
    checks = {**MODULE, **TRANSFORMERS}
    results = {name: check(engine, unsharded) for name, check in checks.items()}
    engine.module.config.tie_word_embeddings = True
    results["untied"] = "weights that are not tied" in refusal_of(engine.module.tie_weights)
    results["after untied"] = same(engine, unsharded)
    tied, engine = pair(tie_word_embeddings=True)
    results["tied"] = both("tie_weights")(engine, tied)
    return {"results": results, "in_step": in_step(rank)}


def refused_names(rank: int) -> dict[str, str]:
    """Call every refused name of a model, of a submodule and of the engine."""
    _, engine = pair()
    texts = {}
    for name in REFUSED:
        for place, module in (("model", engine.module), ("inner", engine.module.model), ("engine", engine)):
            if callable(getattr(type(module), name, None)) or (
                place == "engine" and hasattr(type(engine.module), name)
            ):
                texts[f"{place}.{name}"] = refusal_of(lambda m=module, n=name: getattr(m, n)("x", nn.Linear(1, 1)))
    texts["apart"] = "" if in_step(rank) else "the ranks are apart"
    return texts


def adapter_calls(rank: int) -> dict[str, Any]:
    """Run the names of peft's models and of transformers' adapters on a model with LoRA."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    settings = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(build(), settings)
    unsharded = copy.deepcopy(model)
    config = {"tensor_parallel": {"autotp_size": 2}, "gradient_clipping": 0}
    engine, *_ = initialize(model=model, config=config)
    results: dict[str, object] = {}
    models = (engine.module, unsharded)
    results["get_nb_trainable_parameters"] = len({one.get_nb_trainable_parameters() for one in models}) == 1
    printed = []
    for one in models:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            one.print_trainable_parameters()
        printed.append(text.getvalue())
    results["print_trainable_parameters"] = printed[0] == printed[1]
    with engine.module.disable_adapter(), unsharded.disable_adapter():
        results["disable_adapter"] = same(engine, unsharded)
    for name, arguments in (
        ("disable_adapter_layers", ()),
        ("enable_adapter_layers", ()),
        ("merge_adapter", ()),
        ("unmerge_adapter", ()),
        ("set_adapter", ("default",)),
        ("set_requires_grad", ("default",)),
    ):
        for one in models:
            getattr(one, name)(*arguments)
        results[name] = same(engine, unsharded)
    results["prepare_model_for_gradient_checkpointing"] = True
    for one in models:
        one.prepare_model_for_gradient_checkpointing(one)
    results["prepare_model_for_gradient_checkpointing"] = same(engine, unsharded)
    return {"results": results, "in_step": in_step(rank)}


def native_adapter_calls(rank: int) -> dict[str, Any]:
    """Run the names of transformers' own adapters."""
    from peft import LoraConfig

    torch.manual_seed(5)
    model = build()
    model.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))  # type: ignore[operator]  # transformers' method
    unsharded = copy.deepcopy(model)
    engine, *_ = initialize(model=model, config={"tensor_parallel": {"autotp_size": 2}, "gradient_clipping": 0})
    results: dict[str, object] = {}
    for name, arguments in (("disable_adapters", ()), ("enable_adapters", ()), ("set_adapter", ("default",))):
        results[name] = both(name, *arguments)(engine, unsharded)
    results["get_adapter_state_dict"] = refusal_of(engine.module.get_adapter_state_dict).startswith("EngineError")
    return {"results": results, "in_step": in_step(rank)}


def experts_implementation(rank: int) -> dict[str, Any]:
    """Let Mixtral compute its experts by another implementation."""
    model = catalogue.build("mixtral")
    unsharded = copy.deepcopy(model)
    engine, *_ = initialize(model=model, config={"tensor_parallel": {"autotp_size": 2}, "gradient_clipping": 0})
    results = {name: both("set_experts_implementation", name)(engine, unsharded) for name in ("batched_mm", "eager")}
    return {"results": results, "in_step": in_step(rank)}


def without_guards(rank: int) -> bool:
    """Return whether the count of parameters is right with the guard removed: it is not."""
    unsharded, engine = pair()
    del engine.module.__dict__["num_parameters"]
    return _counts(engine, unsharded)
