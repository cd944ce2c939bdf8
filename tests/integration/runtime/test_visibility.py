"""What a fake forward does not run is refused by name: hooks, replaced methods, computed weights."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning import Cut, Plan, check_plan, plan_model

from families import catalogue

DOWN = "model.layers.0.mlp.down_proj"
UP = "model.layers.1.mlp.up_proj"


def llama() -> Any:
    return catalogue.build("llama").train()


def ignore(*_: Any) -> None:
    """A hook that changes nothing."""


class Doubled(nn.Linear):
    """A linear with another call than nn.Module's."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().__call__(*args, **kwargs)


class Marked(nn.Parameter):
    """A parameter of another type."""


def set_class(module: nn.Module) -> None:
    module.__class__ = Doubled


def set_marked(module: Any) -> None:
    module.weight = Marked(module.weight.data)


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "forward hook": (lambda one: one.register_forward_hook(ignore), "a forward hook .*ignore"),
    "forward pre-hook": (lambda one: one.register_forward_pre_hook(ignore), "a forward pre-hook"),
    "full backward hook": (lambda one: one.register_full_backward_hook(ignore), "a backward hook"),
    "full backward pre-hook": (lambda one: one.register_full_backward_pre_hook(ignore), "a backward pre-hook"),
    "legacy backward hook": (lambda one: one.register_backward_hook(ignore), "a backward hook"),
    "gradient hook": (lambda one: one.weight.register_hook(ignore), "a hook on its gradient"),
    "accumulated": (lambda one: one.weight.register_post_accumulate_grad_hook(ignore), "after its gradient"),
    "instance forward": (
        lambda one: setattr(one, "forward", types.MethodType(lambda self, x: functional.linear(x, self.weight), one)),
        "an attribute of the instance replaces its method forward",
    ),
    "instance call": (lambda one: setattr(one, "_call_impl", one.forward), "replaces its method _call_impl"),
    "class call": (set_class, "Doubled replaces __call__"),
    "weight_norm": (parametrizations.weight_norm, "parametrize computes"),
    "spectral_norm": (parametrizations.spectral_norm, "parametrize computes"),
    "orthogonal": (parametrizations.orthogonal, "parametrize computes"),
    "old weight_norm": (weight_norm, "its weight is computed"),
    "old spectral_norm": (spectral_norm, "its weight is computed"),
    "prune": (lambda one: prune.l1_unstructured(one, "weight", amount=0.5), "its weight is computed"),
    "parameter type": (set_marked, "its weight is a Marked"),
}


@pytest.mark.parametrize("layer", [DOWN, UP])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_sharded_layer_that_computes_something_else_is_refused_by_name(change: str, layer: str) -> None:
    model = llama()
    plan_model(model, 2, 0)  # control: without the change the model is planned
    function, problem = CHANGES[change]
    function(model.get_submodule(layer))
    keys = {name: set(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(PlanError, match=rf"(?s){layer}\S*: .*{problem}.*partition_config"):
        plan_model(model, 2, 0)
    assert keys == {name: set(vars(module)) for name, module in model.named_modules()}
    assert plan_model(model, 1, 0).tp_size == 1  # nothing is sharded, so nothing is refused


@pytest.mark.parametrize(
    "name", ["", "model", "model.layers.0", "model.layers.1.mlp", "model.layers.0.input_layernorm"]
)
def test_hooks_that_see_whole_tensors_are_legal_and_change_no_plan(name: str) -> None:
    model = llama()
    plain = plan_model(model, 2, 0)
    module = model.get_submodule(name)
    module.register_forward_hook(ignore)
    module.register_forward_pre_hook(ignore)
    module.register_full_backward_hook(ignore)
    assert plan_model(model, 2, 0) == plain


def test_hooks_on_the_embedding_and_the_head_are_legal() -> None:
    model = llama()
    plain = plan_model(model, 2, 0)
    model.enable_input_require_grads()
    model.lm_head.register_forward_hook(ignore)
    assert plan_model(model, 2, 0) == plain


@pytest.mark.parametrize("name", ["model.layers.0.mlp.act_fn", "model.layers.1.mlp.act_fn"])
def test_a_hook_between_sharded_layers_is_refused(name: str) -> None:
    model = llama()
    model.get_submodule(name).register_forward_hook(ignore)
    with pytest.raises(PlanError, match=f"{name}: a forward hook.*its tensors are sharded there"):
        plan_model(model, 2, 0)


def test_a_backward_hook_where_gradients_are_partial_is_refused_and_a_forward_hook_is_not() -> None:
    model = catalogue.build("deepseek_v2").train()
    norm = model.model.layers[0].self_attn.kv_a_layernorm
    handle = norm.register_forward_hook(ignore)
    plan_model(model, 2, 0)
    handle.remove()
    norm.register_full_backward_hook(ignore)
    with pytest.raises(PlanError, match="kv_a_layernorm: a backward hook"):
        plan_model(model, 2, 0)


def test_hooks_inside_sharded_experts_are_refused_and_around_them_are_not() -> None:
    model = catalogue.build("mixtral").train()
    plain = plan_model(model, 2, 0)
    (name, *_) = [layer.module for layer in plain.layers if layer.kind.value == "experts"]
    model.get_submodule(name).register_forward_hook(ignore)
    assert plan_model(model, 2, 0) == plain
    inner = next(child for child, _ in model.get_submodule(name).named_modules() if child)
    model.get_submodule(f"{name}.{inner}").register_forward_hook(ignore)
    with pytest.raises(PlanError, match=f"{name}.{inner}: a forward hook"):
        plan_model(model, 2, 0)


def test_with_sequence_parallel_a_hook_inside_the_layers_is_refused() -> None:
    model = llama()
    model.model.register_forward_hook(ignore)
    plan_model(model, 2, 0, sequence_parallel=True)
    model.model.layers[1].register_forward_hook(ignore)
    plan_model(model, 2, 0)
    with pytest.raises(PlanError, match=r"model.layers.1: a forward hook.*a part of the tokens"):
        plan_model(model, 2, 0, sequence_parallel=True)


def test_global_hooks_and_patches_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    handle = register_module_forward_hook(ignore)
    try:
        with pytest.raises(PlanError, match=r"a global forward hook .*ignore.*remove it"):
            plan_model(model, 2, 0)
    finally:
        handle.remove()
    plan_model(model, 2, 0)
    call = nn.Module.__call__
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "__call__", lambda self, *args, **kwargs: call(self, *args, **kwargs))
        with pytest.raises(PlanError, match=r"torch.nn.Module.__call__: it was replaced"):
            plan_model(model, 2, 0)
    linear = functional.linear
    with monkeypatch.context() as patch:
        patch.setattr(functional, "linear", lambda *args: linear(*args))
        with pytest.raises(PlanError, match=r"torch.nn.functional.linear: it was replaced"):
            plan_model(model, 2, 0)


def test_what_is_attached_to_a_whole_layer_stays_and_the_rest_is_sharded() -> None:
    model = llama()
    parametrizations.weight_norm(model.lm_head)
    plan = plan_model(model, 2, 0, vocabulary=False)
    sharded = {record.name for record in plan.parameters if record.dim is not None}
    assert f"{DOWN}.weight" in sharded
    assert not any(name.startswith("lm_head") for name in sharded)


def test_lazy_modules_are_refused() -> None:
    model = llama()
    model.model.layers[0].extra = nn.LazyLinear(4)
    with pytest.raises(PlanError, match=r"extra.weight, .*it is uninitialized"):
        plan_model(model, 2, 0)


def test_a_plan_of_the_user_is_checked_in_the_same_way() -> None:
    model = llama()
    plan = plan_model(model, 2, 0)
    assert check_plan(plan, model, 2) == plan
    model.get_submodule(UP).register_forward_hook(ignore)
    with pytest.raises(PlanError, match=f"{UP}: a forward hook"):
        check_plan(plan, model, 2)


def edited(plan: Plan, name: str, **changes: Any) -> Plan:
    return replace(
        plan, parameters=tuple(replace(one, **changes) if one.name == name else one for one in plan.parameters)
    )


def test_every_sharded_layer_has_a_sharded_weight_and_every_sharded_parameter_a_layer() -> None:
    model = llama()
    plan = plan_model(model, 2, 0)
    whole = edited(plan, f"{DOWN}.weight", cut=Cut.REPLICATED, dim=None)
    with pytest.raises(PlanError, match=f"{DOWN} is a sharded layer, and no parameter of it is sharded"):
        check_plan(whole, model, 2)
    alone = edited(plan, "model.norm.weight", cut=Cut.COLUMN, dim=0)
    with pytest.raises(PlanError, match=r"model.norm.weight is sharded, and model.norm is no sharded layer"):
        check_plan(alone, model, 2)


def test_hooks_are_not_run_while_planning() -> None:
    model = llama()
    fired: list[int] = []
    model.model.layers[0].register_forward_hook(lambda *_: fired.append(1))
    plan_model(model, 2, 0)
    assert not fired
    assert torch.is_grad_enabled()
