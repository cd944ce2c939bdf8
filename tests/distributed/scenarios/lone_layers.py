"""Sharded layers called by themselves, and the modules around them, outside of a forward of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint
from tpinit.runtime import initialize

from families import catalogue
from support.pairs import pair
from support.refusals import in_step, refusal_of
from support.tiny_models import tokens

Call = Callable[[Any, torch.Tensor], torch.Tensor]


def _hidden(features: int) -> torch.Tensor:
    return torch.randn(2, 6, features, generator=torch.Generator().manual_seed(0))


def _same(call: Call, sharded: Any, whole: Any, features: int) -> bool:
    """Return whether a call gives the same on both modules, and the same gradient of its input."""
    found = []
    for module in (sharded, whole):
        hidden = _hidden(features).requires_grad_()
        output = call(module, hidden)
        output.square().sum().backward()
        found.append((output.detach(), hidden.grad))
    return all(torch.allclose(*two, atol=1e-4) for two in zip(*found, strict=True))


def _plain(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = module(hidden)
    return output


def _embedded(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    return hidden.sum() * _plain(module, tokens())


def _routed(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    flat = hidden.flatten(0, 1)
    experts = torch.arange(len(flat)).remainder(2).unsqueeze(1)
    output: torch.Tensor = module(flat, experts, torch.full((len(flat), 1), 0.7))
    return output


_CALLS: dict[str, Call] = {"embedding": _embedded, "experts": _routed}


def _lone(call: Call, module: Any, unsharded: Any, features: int) -> dict[str, Any]:
    right: list[bool] = []
    text = refusal_of(lambda: right.append(_same(call, module, unsharded, features)))
    quiet = refusal_of(lambda: torch.no_grad()(call)(module, _hidden(features)))
    return {"text": text, "right": right == [True], "no gradients": quiet}


def kinds(rank: int, family: str) -> dict[str, Any]:
    """Call the first layer of each kind of a family by itself: the refusal, or whether it is right; in each mode."""
    whole = catalogue.build(family)
    config = {"tensor_parallel": {"autotp_size": dist.get_world_size()}, "gradient_clipping": 0}
    engine = initialize(model=copy.deepcopy(whole), config=config)[0]
    found = {}
    for layer in reversed(engine.plan.layers):
        module, unsharded = engine.module.get_submodule(layer.module), whole.get_submodule(layer.module)
        features = getattr(unsharded, "in_features", whole.config.hidden_size)
        how = (_CALLS.get(layer.kind.value, _plain), module, unsharded, features)
        found[layer.kind.value] = {"name": layer.module, **_lone(*how)}
    return {"kinds": found, "in_step": in_step(rank)}


# --- modules around sharded layers -------------------------------------------------------------------------


class _Probe(nn.Module):
    """A module of the user around one layer of the model."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the layer returns."""
        return _plain(self.layer, hidden)


_AROUND: dict[str, Call] = {
    "a call": _plain,
    "its forward": lambda mlp, hidden: mlp.forward(hidden),
    "a checkpoint": lambda mlp, hidden: checkpoint(mlp, hidden, use_reentrant=False),
    "a reentrant checkpoint": lambda mlp, hidden: checkpoint(mlp, hidden, use_reentrant=True),
    "a copy": lambda mlp, hidden: copy.deepcopy(mlp)(hidden),
    "in a module of the user": lambda mlp, hidden: _Probe(mlp)(hidden),
}

_ALONE: dict[str, Call] = {
    "column": lambda mlp, hidden: mlp.up_proj(hidden),
    "row": lambda mlp, hidden: mlp.down_proj(torch.zeros(2, 6, 48)),
    "row with a part": lambda mlp, hidden: mlp.down_proj(torch.zeros(2, 6, 24)),
    "its forward": lambda mlp, hidden: mlp.up_proj.forward(hidden),
    "a checkpoint": lambda mlp, hidden: checkpoint(mlp.up_proj, hidden, use_reentrant=False),
    "a copy": lambda mlp, hidden: copy.deepcopy(mlp.up_proj)(hidden),
    "a chain": lambda mlp, hidden: nn.Sequential(mlp.up_proj, mlp.act_fn)(hidden),
    "in a module of the user": lambda mlp, hidden: _Probe(mlp.up_proj)(hidden),
    "a method of the block": lambda mlp, hidden: _features(mlp, hidden),
    "no gradients": lambda mlp, hidden: torch.no_grad()(mlp.up_proj)(hidden),
}


def _features(block: Any, hidden: torch.Tensor) -> torch.Tensor:
    return _plain(block.up_proj, hidden)


def around(rank: int) -> dict[str, Any]:
    """Call blocks outside of the model's forward, and layers in them, in each way; then run the model."""
    unsharded, engine = pair(num_hidden_layers=1)
    layer, whole = engine.module.model.layers[0], unsharded.model.layers[0]
    angles = unsharded.model.rotary_emb(_hidden(32), torch.arange(6).unsqueeze(0))
    right = {name: _same(call, layer.mlp, whole.mlp, 32) for name, call in _AROUND.items()}
    right["a decoder layer"] = _same(lambda one, hidden: one(hidden, position_embeddings=angles), layer, whole, 32)
    refused = {name: refusal_of(lambda call=call: call(layer.mlp, _hidden(32))) for name, call in _ALONE.items()}
    ids = {"input_ids": tokens()}
    for name, call in (("forward", engine.module.forward), ("engine", engine)):
        right[name] = torch.allclose(call(**ids).logits, unsharded(**ids).logits, atol=1e-5)
    return {"right": right, "refused": refused, "in_step": in_step(rank)}


def sharded_tokens(rank: int) -> dict[str, Any]:
    """Call modules inside a stack whose tokens are sharded, and the model around it."""
    unsharded, engine = pair(sequence_parallel=True)
    model = engine.module.model
    refused = {
        name: refusal_of(lambda name=name: model.get_submodule(name)(_hidden(32)))
        for name in ("layers.0", "layers.0.mlp", "layers.1.mlp.down_proj", "layers.0.mlp.up_proj")
    }
    with torch.no_grad():
        found = [one(input_ids=tokens()).last_hidden_state for one in (model, unsharded.model)]
    return {"refused": refused, "right": torch.allclose(*found, atol=1e-5), "in_step": in_step(rank)}


def between_layers(rank: int) -> dict[str, Any]:
    """Call a norm over each head, whose weight is sharded with the heads, and a table whose output is."""
    refused = {}
    config = {"tensor_parallel": {"autotp_size": dist.get_world_size()}, "gradient_clipping": 0}
    for family, name, given in (
        ("cohere_qk_norm", "model.layers.0.self_attn.q_norm", _hidden(4)),
        ("t5", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias", torch.arange(4)),
        ("dbrx", "transformer.blocks.0.ffn.experts.mlp", _hidden(4)),
    ):
        engine = initialize(model=catalogue.build(family), config=config)[0]
        refused[family] = refusal_of(lambda name=name, given=given, e=engine: e.module.get_submodule(name)(given))
    return {"refused": refused, "in_step": in_step(rank)}
