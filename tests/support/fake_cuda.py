"""A host with GPUs that are not there: torch.cuda as a process sees it, and models whose parameters say cuda."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn


@dataclass
class FakeCuda:
    """`count` GPUs; `current` is the index that torch.cuda.set_device last chose. `selected` are its calls."""

    count: int
    current: int = 0
    selected: list[int] = field(default_factory=list)
    generators: list[torch.Generator] = field(default_factory=list)  # of the CPU, in place of those of the GPUs

    def __post_init__(self) -> None:
        self.generators = [torch.Generator().manual_seed(100 + index) for index in range(self.count)]

    def states(self) -> list[list[int]]:
        """Return the RNG state of every GPU."""
        return [generator.get_state().tolist() for generator in self.generators]

    def get_rng_state(self, device: torch.device) -> torch.Tensor:
        return self.generators[device.index].get_state()

    def set_rng_state(self, state: torch.Tensor, device: torch.device) -> None:
        self.generators[device.index].set_state(state)

    def set_device(self, device: int | torch.device) -> None:
        index = device.index if isinstance(device, torch.device) else device
        assert isinstance(index, int)
        if index >= self.count:
            raise RuntimeError("CUDA error: invalid device ordinal")
        self.current = index
        self.selected.append(index)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: self.count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: self.count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "set_device", self.set_device)
        monkeypatch.setattr(torch.cuda, "get_device_properties", _properties)
        monkeypatch.setattr(torch.cuda, "get_rng_state", self.get_rng_state)
        monkeypatch.setattr(torch.cuda, "set_rng_state", self.set_rng_state)
        monkeypatch.setattr(torch.cuda, "default_generators", tuple(self.generators))
        return self


def _properties(device: torch.device) -> SimpleNamespace:
    return SimpleNamespace(uuid=f"GPU-{torch.device(device).index}")


def served_by(monkeypatch: pytest.MonkeyPatch, configuration: str) -> None:
    """Let the world be served by these backends, as torch writes them: `cpu:gloo,cuda:nccl`."""
    monkeypatch.setattr(dist, "get_backend_config", lambda group=None: configuration)


def model_on(*devices: str) -> nn.Module:
    """Return a model with one parameter on each device. Those of GPUs have no values: they are fake tensors."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = nn.Module()
    for index, device in enumerate(devices):
        if device in ("cpu", "meta"):
            parameter = torch.ones(2, device=device)
        else:
            with FakeTensorMode():
                parameter = torch.empty(2, device=device)
        model.register_parameter(f"p{index}", nn.Parameter(parameter, requires_grad=False))
    return model
