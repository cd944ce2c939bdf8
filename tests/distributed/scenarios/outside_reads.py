"""Losses that read parameters outside of the model's forward, by plain backwards and the engine's; and legal ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from scenarios.optimizer_calls import MOMENTUM, backward
from scenarios.optimizer_loop import gap, loss_of, start
from support.refusals import in_step, refusal_of
from support.tiny_models import tokens

Loss = Callable[[Any], torch.Tensor]  # of an engine, or of the unsharded model


def _module(model: Any) -> Any:
    return getattr(model, "module", model)


def _up(model: Any) -> torch.nn.Parameter:
    weight: torch.nn.Parameter = _module(model).model.layers[0].mlp.up_proj.weight
    return weight


def _hidden(model: Any) -> torch.Tensor:
    hidden: torch.Tensor = _module(model).model(input_ids=tokens()).last_hidden_state
    return hidden


def _head_loss(model: Any) -> torch.Tensor:
    logits = functional.linear(_hidden(model), _module(model).lm_head.weight)
    return functional.cross_entropy(logits.flatten(0, 1), tokens().flatten() % 8)


def _from_outside(model: Any) -> torch.Tensor:
    zeros = 0 * functional.embedding(tokens() % 8, _module(model).model.embed_tokens.weight)
    loss: torch.Tensor = model(inputs_embeds=zeros + 0.1, labels=tokens()).loss  # inputs that are equal on all ranks
    return loss


def _legal_and_not(model: Any) -> torch.Tensor:
    weight = _up(model)
    name = "module.model.layers.0.mlp.up_proj.weight"
    return model.sum_over_parameters({name: weight.square()}) + weight.norm()


REFUSED: dict[str, Loss] = {
    "norms": lambda model: loss_of(model, 0) + sum(one.norm() for one in model.parameters()),
    "one square": lambda model: loss_of(model, 0) + _up(model).square().sum(),
    "a distance": lambda model: (_up(model) - _up(model).detach() - 0.1).square().sum(),
    "a vector": lambda model: torch.nn.utils.parameters_to_vector(model.parameters()).norm(),
    "the weight of the head": _head_loss,
    "an input of the model": _from_outside,
    "beside a legal term": _legal_and_not,
    "inside a checkpoint": lambda model: checkpoint(_square, _up(model), use_reentrant=False),
    "inside a reentrant checkpoint": lambda model: checkpoint(_square, _up(model), use_reentrant=True),
    "a copied model": lambda model: _up(copy.deepcopy(_module(model))).norm(),
    "no operation": _up,
}


def _square(weight: torch.Tensor) -> torch.Tensor:
    return weight.square().sum()


def _run(loss: torch.Tensor) -> None:
    loss.backward(None if loss.dim() == 0 else torch.ones_like(loss))  # type: ignore[no-untyped-call]  # torch's


def refused(rank: int) -> dict[str, Any]:
    """Run each loss backward by hand, one by the engine and by torch.autograd.grad; then train a step."""
    unsharded, engine, optimizer = start(MOMENTUM)
    texts = {name: refusal_of(lambda loss=loss: _run(loss(engine))) for name, loss in REFUSED.items()}
    texts["autograd.grad"] = refusal_of(lambda: torch.autograd.grad(_up(engine).norm(), [_up(engine)]))
    texts["engine.backward"] = refusal_of(lambda: engine.backward(loss_of(engine, 0) + _up(engine).norm()))
    none = all(one.grad is None for one in engine.parameters())
    engine.zero_grad()
    other = MOMENTUM(unsharded)
    for model, one in ((engine, optimizer), (unsharded, other)):
        backward(loss_of(model, 0) + _module(model).model.norm.weight.norm() + 0 * _up(model).detach().norm())
        one.step()
    return {"texts": texts, "no gradients": none, "weight": gap(engine, unsharded), "in_step": in_step(rank)}


def tokens_sharded(rank: int) -> dict[str, Any]:
    """Penalize a norm whose gradient the ranks add up (sequence parallelism), and one whose gradient they do not."""
    _, engine, _ = start(MOMENTUM, parallel=True)
    model = engine.module.model
    layer = model.layers[0].input_layernorm
    return {
        "added up": refusal_of(lambda: _run(layer.weight.norm())),
        "by itself": refusal_of(lambda: _run(layer(torch.ones(1, 4, 32)).sum())),
        "replicated": refusal_of(lambda: _run(model.norm.weight.norm())),
        "in_step": in_step(rank),
    }


# --- legal losses ------------------------------------------------------------------------------------------


def _two_forwards(model: Any) -> torch.Tensor:
    chosen, rejected = loss_of(model, 0), loss_of(model, 1)
    with torch.no_grad():
        start_ = loss_of(model, 0)
    return -functional.logsigmoid(chosen - rejected - start_)


def _soft_prompt(model: Any) -> torch.Tensor:
    embedded = _module(model).get_input_embeddings()(tokens())
    loss: torch.Tensor = model(inputs_embeds=embedded + 0.1, labels=tokens()).loss
    return loss


def _autocast(model: Any) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return loss_of(model, 0)


def _by_hand(model: Any) -> torch.Tensor:
    hidden = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    output: torch.Tensor = _module(model).model.layers[0].mlp(hidden)
    return output.square().sum() + loss_of(model, 0)


def _checkpointed(reentrant: bool) -> Loss:
    def loss(model: Any) -> torch.Tensor:
        _module(model).gradient_checkpointing_enable({"use_reentrant": reentrant})
        return loss_of(model, 0)

    return loss


def _frozen(model: Any) -> torch.Tensor:
    _up(model).requires_grad_(False)
    return loss_of(model, 0)


LEGAL: dict[str, Loss] = {
    "one forward": lambda model: loss_of(model, 0),
    "two forwards": _two_forwards,
    "embedded outside": _soft_prompt,
    "a block by hand": _by_hand,
    "autocast": _autocast,
    "the inner model": lambda model: _hidden(model)[..., :5].square().sum(),
    "its forward": lambda model: _module(model).forward(input_ids=tokens(), labels=tokens()).loss,
    "frozen": _frozen,
    "a checkpoint": _checkpointed(False),
    "a reentrant checkpoint": _checkpointed(True),
}


def legal(rank: int) -> dict[str, Any]:
    """Compare the gradients of legal losses with the unsharded model's: one backward, two on one graph, and grad."""
    unsharded, engine, _ = start(MOMENTUM, num_hidden_layers=1, tie_word_embeddings=True)
    found = {}
    for name, loss in LEGAL.items():
        for model in (engine, unsharded):
            model.zero_grad()
            value = loss(model)
            value.backward(retain_graph=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            norm = _module(model).model.norm.weight
            if norm.grad is not None and "reentrant" not in name:
                torch.autograd.grad(value, [norm], retain_graph=True)
            if "checkpoint" not in name:
                backward(value)
        found[name] = gap(engine, unsharded, lambda one: one.grad)
    return {"gaps": found, "in_step": in_step(rank)}
