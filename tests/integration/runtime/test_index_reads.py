"""A layer that looks at its index, by whatever means, is planned on its own: only layers of known code are folded."""

from __future__ import annotations

import functools
import operator
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning import plan_model
from tpinit.runtime.planning.analysis import layer_folding
from tpinit.runtime.planning.analysis.known_code import unknown_code
from tpinit.runtime.planning.analysis.layer_folding import fold_layers

from families import catalogue

ODD = 3
CALLS: list[int] = []


def count_call() -> int:
    CALLS.append(0)
    return (len(CALLS) - 1) % 6


class Marker:
    """An index that compares by identity only."""


MARKERS = [Marker() for _ in range(6)]
Look = Callable[[Any], bool]
LOOKS: dict[str, Look] = {
    "comparison": lambda self: self.layer_idx == ODD,
    "type": lambda self: type(self.layer_idx) is int and self.layer_idx == ODD,
    "isinstance": lambda self: isinstance(self.layer_idx, int) and self.layer_idx == ODD,
    "str": lambda self: str(self.layer_idx) == "3",
    "repr": lambda self: f"{self.layer_idx!r}" == "3",
    "format": lambda self: f"{self.layer_idx:02d}" == "03",
    "hash": lambda self: hash(self.layer_idx) == hash(ODD),
    "arithmetic": lambda self: not self.layer_idx - ODD,
    "remainder": lambda self: self.layer_idx % 6 == ODD,
    "in": lambda self: self.layer_idx in (ODD, 17),
    "dict": lambda self: {ODD: True}.get(self.layer_idx, False),
    "list": lambda self: [False, False, False, True, False, False][self.layer_idx],
    "operator.index": lambda self: operator.index(self.layer_idx) == ODD,
    "pickle": lambda self: pickle.loads(pickle.dumps(self.layer_idx)) == ODD,
    "identity": lambda self: self.marker is MARKERS[ODD],
    "closure": lambda self: self.is_odd(),
    "partial": lambda self: self.partly() == ODD,
    "name": lambda self: self.name.endswith("3"),
    "attribute": lambda self: hasattr(self, "extra"),
    "config": lambda self: self.config.layer_types[self.layer_idx] == "odd",
    "position": lambda self: list(self.siblings[0]).index(self) == ODD,
    "id": lambda self: [id(layer) for layer in self.siblings[0]].index(id(self)) == ODD,
    "counter": lambda _: count_call() == ODD,
    "environment": lambda self: sys.modules[__name__].__dict__["MARKERS"].index(self.marker) == ODD,
    "tensor": lambda self: bool(torch.tensor(self.layer_idx) == ODD),
    "text of the attributes": lambda self: "'layer_idx': 3" in str(vars(self)),
}


class Layer(nn.Module):
    """An MLP that computes something over all of its inner features if `look` returns True."""

    def __init__(self, index: int, look: Look, siblings: list[nn.ModuleList], config: Any) -> None:
        super().__init__()
        self.layer_idx, self.look, self.siblings, self.config = index, look, siblings, config
        self.marker, self.name = MARKERS[index], f"layer{index}"
        self.is_odd = lambda: index == ODD
        self.partly = functools.partial(operator.add, index, 0)
        if index == ODD:
            self.extra = True
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.up(x)
        if self.look(self):
            inner = inner - inner.mean(-1, keepdim=True)
        return x + self.down(inner)


class Stack(nn.Module):
    def __init__(self, look: Look) -> None:
        super().__init__()
        config = types.SimpleNamespace(layer_types=["odd" if index == ODD else "even" for index in range(6)])
        siblings: list[nn.ModuleList] = []
        self.layers = nn.ModuleList([Layer(index, look, siblings, config) for index in range(6)])
        siblings.append(self.layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def sharded_layers(model: nn.Module) -> set[str]:
    CALLS.clear()
    plan = plan_model(model, 2, 0, example={"x": torch.randn(2, 3, 8)})
    return {layer.module for layer in plan.layers}


def test_layers_that_read_a_tensor_of_their_index_in_python_are_refused() -> None:
    with pytest.raises(PlanError, match=r"the forward of layers\.0 reads values of a tensor in Python"):
        sharded_layers(Stack(LOOKS["tensor"]))


@pytest.mark.parametrize("look", [look for look in LOOKS if look != "tensor"])
def test_a_layer_that_looks_at_its_index_is_not_sharded_and_the_others_are(look: str) -> None:
    expected = {f"layers.{index}.{name}" for index in range(6) if index != ODD for name in ("up", "down")}
    found = sharded_layers(Stack(LOOKS[look]))
    # A run that ends early shifts the count of calls, so that other layers are not sharded either.
    assert found <= expected if look == "counter" else found == expected


def test_without_the_check_of_the_code_a_look_at_the_type_goes_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: folding alone takes the odd layer for one like the others."""
    monkeypatch.setattr(layer_folding, "unknown_code", lambda *_: None)

    def by_type(self: Any) -> bool:
        return type(self.layer_idx) is int and self.layer_idx == ODD

    assert "layers.3.up" in sharded_layers(Plain(by_type))


class PlainLayer(nn.Module):
    """A layer that differs from the others in its index only."""

    def __init__(self, index: int, look: Look) -> None:
        super().__init__()
        self.layer_idx, self.look = index, look
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    forward = Layer.forward


class Plain(nn.Module):
    def __init__(self, look: Look) -> None:
        super().__init__()
        self.layers = nn.ModuleList([PlainLayer(index, look) for index in range(6)])

    forward = Stack.forward


class ByPosition(nn.Module):
    """A model that passes another argument to one of its equal layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([PlainLayer(0, lambda self: self.flag) for _ in range(6)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, layer in enumerate(self.layers):
            layer.flag = index == ODD
            x = layer(x)
        return x


def test_a_model_that_treats_one_of_its_layers_otherwise_is_planned_layer_by_layer() -> None:
    layers = sharded_layers(ByPosition())
    assert "layers.3.up" not in layers
    assert "layers.2.up" in layers


def replaced_class_method(model: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    kind = type(model.model.layers[0].mlp)
    original = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: original(self, x))
    return "LlamaMLP.forward, which was replaced"


def wrapped_by_the_package(model: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    from transformers.utils.generic import can_return_tuple

    kind = type(model.model)
    original = kind.forward
    monkeypatch.setattr(
        kind, "forward", can_return_tuple(lambda self, *args, **kwargs: original(self, *args, **kwargs))
    )
    return "LlamaModel.forward, which was replaced"


def replaced_function(model: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    module = sys.modules[type(model).__module__]
    original = module.apply_rotary_pos_emb
    monkeypatch.setattr(module, "apply_rotary_pos_emb", lambda *args, **kwargs: original(*args, **kwargs))
    return "modeling_llama.apply_rotary_pos_emb, which was replaced or added"


def own_attention(model: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    registered = AttentionInterface._global_mapping
    monkeypatch.setitem(registered, "own", lambda *args, **kwargs: sdpa_attention_forward(*args, **kwargs))
    model.config._attn_implementation = "own"
    return "which was replaced or added"


def replaced_torch_function(_: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    original = nn.functional.silu
    monkeypatch.setattr(nn.functional, "silu", lambda *args, **kwargs: original(*args, **kwargs))
    return "torch.nn.functional.silu"


def own_forward_of_a_layer(model: Any, _: Any) -> str:
    layer = model.model.layers[2]
    layer.forward = types.MethodType(lambda self, *args, **kwargs: type(self).forward(self, *args, **kwargs), layer)
    return "the attribute forward of a LlamaDecoderLayer"


def own_object(model: Any, _: Any) -> str:
    model.model.layers[1].helper = Marker()
    return "the attribute helper of a LlamaDecoderLayer"


def own_hook(model: Any, _: Any) -> str:
    model.model.layers[1].register_forward_hook(lambda *_: None)
    return "the attribute _forward_hooks of a LlamaDecoderLayer"


def own_subclass(model: Any, _: Any) -> str:
    model.model.norm.__class__ = type("Norm", (type(model.model.norm),), {})
    return "Norm"


CHANGES = [
    replaced_class_method,
    wrapped_by_the_package,
    replaced_function,
    own_attention,
    replaced_torch_function,
    own_forward_of_a_layer,
    own_object,
    own_hook,
    own_subclass,
]


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
def test_a_model_of_transformers_with_code_of_a_user_is_not_folded(
    change: Callable[[Any, pytest.MonkeyPatch], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = catalogue.build("llama", num_hidden_layers=5)
    assert unknown_code(model) is None
    with fold_layers(model) as folding:
        assert folding.represented
    text = change(model, monkeypatch)
    found = unknown_code(model)
    assert found is not None
    assert text in found
    with fold_layers(model) as folding:
        assert not folding.represented


def test_an_object_of_a_user_among_the_inputs_prevents_folding() -> None:
    model = catalogue.build("llama", num_hidden_layers=5)
    ids = {"input_ids": torch.arange(6)[None]}
    assert unknown_code(model, ids) is None
    assert unknown_code(model, {**ids, "past_key_values": Marker()}) == "the input past_key_values"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_adapters_of_peft_are_known_code() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    model = peft.get_peft_model(catalogue.build("llama", num_hidden_layers=5), config)
    assert unknown_code(model) is None
