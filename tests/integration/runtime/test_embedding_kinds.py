"""An embedding is sharded by vocabulary only if it looks rows up and scales them by one constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from tpinit.runtime.planning import plan_model

from families import catalogue

WEIGHT = "model.embed_tokens.weight"
Forward = Callable[[Any, torch.Tensor], torch.Tensor]


def counted(self: Any, ids: torch.Tensor) -> torch.Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    return functional.embedding(ids, self.weight)


LOOK_UPS: dict[str, Forward] = {
    "plain": lambda self, ids: nn.Embedding.forward(self, ids),
    "scaled": lambda self, ids: nn.Embedding.forward(self, ids) * 7.0,
    "scaled by a buffer": lambda self, ids: nn.Embedding.forward(self, ids) * self.scale.to(self.weight.dtype),
    "reshaped": lambda self, ids: nn.Embedding.forward(self, ids).view(*ids.shape, -1),
}
OTHERS: dict[str, Forward] = {
    "bias": lambda self, ids: nn.Embedding.forward(self, ids) + 1,
    "trained scale": lambda self, ids: nn.Embedding.forward(self, ids) * self.trained,
    "scale for each feature": lambda self, ids: nn.Embedding.forward(self, ids) * self.features,
    "offset of the ids": lambda self, ids: nn.Embedding.forward(self, (ids - 0).clamp(max=90)),
    "another weight for one id": lambda self, ids: nn.Embedding.forward(self, ids) * (1 + (ids > 50)).unsqueeze(-1),
    "normalised": lambda self, ids: functional.normalize(nn.Embedding.forward(self, ids), dim=-1),
    "relu": lambda self, ids: nn.Embedding.forward(self, ids).relu(),
    "dropout": lambda self, ids: functional.dropout(nn.Embedding.forward(self, ids), 0.5, self.training),
    "in training": lambda self, ids: nn.Embedding.forward(self, ids) + float(self.training),
    "mean of the table": lambda self, ids: nn.Embedding.forward(self, ids) - self.weight.mean(0),
    "max_norm": lambda self, ids: functional.embedding(ids, self.weight, max_norm=1.0),
    "counted": counted,
}


def plan_with(forward: Forward) -> set[str]:
    model = catalogue.build("llama").train()
    embedding = model.model.embed_tokens
    embedding.register_buffer("scale", torch.tensor(3.0))
    embedding.register_buffer("features", torch.ones(embedding.embedding_dim))
    if forward is OTHERS["trained scale"]:
        embedding.trained = nn.Parameter(torch.ones(()))
    embedding.__class__ = type("OwnEmbedding", (nn.Embedding,), {"forward": forward})
    keys = set(embedding.__dict__)
    plan = plan_model(model, 2, 0)
    assert set(embedding.__dict__) == keys
    return {name for record in plan.parameters if record.dim is not None for name in record.names}


@pytest.mark.parametrize("name", LOOK_UPS)
def test_a_lookup_times_one_constant_is_sharded(name: str) -> None:
    assert WEIGHT in plan_with(LOOK_UPS[name])


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_embedding_stays_whole_and_the_layers_are_sharded(name: str) -> None:
    sharded = plan_with(OTHERS[name])
    assert WEIGHT not in sharded
    assert "model.layers.0.mlp.down_proj.weight" in sharded


@pytest.mark.parametrize("flag", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_an_embedding_with_a_flag_that_needs_the_whole_table_stays_whole(flag: dict[str, Any]) -> None:
    model = catalogue.build("llama").train()
    for name, value in flag.items():
        setattr(model.model.embed_tokens, name, value)
    plan = plan_model(model, 2, 0)
    assert WEIGHT not in {name for record in plan.parameters if record.dim is not None for name in record.names}
