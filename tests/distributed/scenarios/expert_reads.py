"""Blocks of experts whose weights are read by something else than their own forward, after `initialize`."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize
from tpinit.runtime.planning.analysis.linears import expert_weights, find_experts

from families import catalogue
from support.refusals import in_step, refusal_of


def read_beside_the_experts(rank: int, name: str) -> dict[str, Any]:
    """Run a model as it is, and with a hook on a norm that reads the weights of the experts; return what happened."""
    model = catalogue.build(name).train()
    experts = next(iter(find_experts(model)))
    config = {"tensor_parallel": {"autotp_size": dist.get_world_size()}, "gradient_clipping": 0}
    engine, *_ = initialize(model=model, config=config)
    block = engine.module.get_submodule(experts)
    weight = expert_weights(block)[0]
    ids = {"input_ids": torch.arange(8).reshape(2, 4)}
    plain = engine(**ids).logits.detach()
    owner, _, last = weight.rpartition(".")

    def read(*_: Any) -> None:
        parameter = getattr(block.get_submodule(owner), last)
        assert parameter.shape[0] > 1, "the shape may be read"
        parameter.sum()

    norm = next(module for module in engine.module.modules() if "Norm" in type(module).__name__)
    handle = norm.register_forward_hook(read)
    text = refusal_of(lambda: engine(**ids))
    handle.remove()
    again = engine(**ids).logits.detach()
    outside = float(getattr(block.get_submodule(owner), last).detach().sum())
    return {
        "text": text,
        "same": torch.equal(plain, again),
        "outside": outside == outside,
        "class": type(block).__name__,
        "in_step": in_step(rank),
    }
