"""DeepSpeed's type "Muon" in a config: its update written out, and which parameter is updated by which half."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from tpinit.reference.errors import ConfigError
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.settings import read_settings
from tpinit.runtime.training.config_optimizers import MuonAdamW
from tpinit.runtime.training.optimizer_kinds import OptimizerKind, classify
from tpinit.runtime.training.optimizers import build_optimizer

BF16 = 2e-2  # of an orthogonal matrix, whose iteration runs in bf16 on both sides


class Model(nn.Module):
    """A matrix of a layer, one of an embedding, one of the head, a vector and a frozen matrix."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(5, 4)
        self.layer = nn.Linear(4, 6)
        self.frozen = nn.Linear(4, 4, bias=False).requires_grad_(False)
        self.lm_head = nn.Linear(6, 5, bias=False)


def built(model: nn.Module, parameters: Any = None, **params: Any) -> MuonAdamW:
    settings = read_settings({"optimizer": {"type": "Muon", "params": params}}, 1, None)
    assert settings.optimizer is not None
    names = {id(one): name for name, one in model.named_parameters()}
    optimizer = build_optimizer(settings.optimizer, parameters or model.parameters(), names)
    assert isinstance(optimizer, MuonAdamW)
    return optimizer


def split(model: nn.Module, optimizer: MuonAdamW) -> dict[str, bool]:
    names = {id(one): name for name, one in model.named_parameters()}
    return {names[id(one)]: group["use_muon"] for group in optimizer.param_groups for one in group["params"]}


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Return DeepSpeed's `zeropower_via_newtonschulz5` of a matrix, in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    values = matrix.bfloat16()
    tall = values.size(0) > values.size(1)
    values = values.mT if tall else values
    values = values / (values.norm() + 1e-7)
    for _ in range(5):
        gram = values @ values.mT
        values = a * values + (b * gram + c * gram @ gram) @ values
    return (values.mT if tall else values).float()


def test_the_update_is_deepspeeds() -> None:
    model = Model()
    optimizer = built(model, lr=0.1, adam_lr=0.01, momentum=0.9, weight_decay=0.2, betas=[0.8, 0.9], eps=1e-6)
    weights = {name: one.detach().clone() for name, one in model.named_parameters()}
    momentum, average, squares = (torch.zeros_like(weights["layer.weight"]), torch.zeros(5, 6), torch.zeros(5, 6))
    for step in (1, 2, 3):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        first, second = model.layer.weight.grad, model.lm_head.weight.grad
        momentum = momentum.lerp(first, 1 - 0.9)
        update = orthogonal(first.lerp(momentum, 0.9)) * (6 / 4) ** 0.5
        weights["layer.weight"] = weights["layer.weight"] * (1 - 0.1 * 0.2) - 0.1 * update
        average, squares = average.lerp(second, 1 - 0.8), squares.lerp(second.square(), 1 - 0.9)
        update = average / (1 - 0.8**step) / ((squares / (1 - 0.9**step)).sqrt() + 1e-6)
        weights["lm_head.weight"] = weights["lm_head.weight"] * (1 - 0.01 * 0.2) - 0.01 * update
        optimizer.step()
    torch.testing.assert_close(model.layer.weight, weights["layer.weight"], rtol=0, atol=0.3 * BF16)
    torch.testing.assert_close(model.lm_head.weight, weights["lm_head.weight"], rtol=0, atol=1e-6)
    assert torch.equal(model.frozen.weight, weights["frozen.weight"])


def test_matrices_of_layers_are_muons_and_the_rest_is_adams() -> None:
    model = Model()
    expected = {"layer.weight": True, "embed_tokens.weight": False, "layer.bias": False, "lm_head.weight": False}
    assert split(model, built(model)) == expected
    muon, adam = built(model, lr=0.5, adam_lr=0.25).param_groups
    assert (muon["lr"], adam["lr"]) == (0.5, 0.25)
    assert {key: built(model).param_groups[0][key] for key in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.02, "momentum": 0.95, "weight_decay": 0.0,
    }  # fmt: skip
    assert {key: built(model).param_groups[1][key] for key in ("lr", "betas", "eps", "weight_decay")} == {
        "lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.0,
    }  # fmt: skip


def test_options_of_a_group_win_and_each_group_has_its_halves() -> None:
    model = Model()
    groups = [
        {"params": [model.layer.weight, model.lm_head.weight], "weight_decay": 0.3},
        {"params": [model.layer.bias], "lr": 0.7, "momentum": 0.1},
    ]
    found = built(model, groups, weight_decay=0.1, muon_lr=0.5).param_groups
    assert [(one["use_muon"], one["weight_decay"]) for one in found] == [(True, 0.3), (False, 0.3), (False, 0.1)]
    assert [one["lr"] for one in found] == [0.5, 3e-4, 0.7]


def test_it_needs_whole_tensors() -> None:
    assert classify(built(Model())) is OptimizerKind.WHOLE_TENSORS


@pytest.mark.parametrize(
    "params",
    [{"ns_method": "quintic"}, {"per_head_muon": True}, {"lr": "auto"}, {"nesterov": True}, {"momentum": -1, "lr": 1}],
)
def test_options_that_are_not_honoured_are_errors(params: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.params"):
        built(Model(), **params)


def test_tensors_of_more_dimensions_and_groups_that_do_not_say_are_refused() -> None:
    convolution = nn.Conv1d(3, 4, 2)
    with pytest.raises(UnsupportedError, match="weight has 3 dimensions"):
        built(convolution)
    with pytest.raises(ValueError, match="use_muon"):
        MuonAdamW([{"params": [nn.Parameter(torch.ones(2, 2))]}])


def test_plain_adam_beside_muon_is_asked_for_by_adam_w_mode() -> None:
    weights = []
    for decoupled in (True, False):
        model = Model()
        optimizer = built(model, weight_decay=0.5, adam_lr=0.1, adam_w_mode=decoupled)
        model.layer.bias.grad = torch.ones(6)
        optimizer.step()
        weights.append(model.layer.bias.detach())
    assert not torch.allclose(*weights)
