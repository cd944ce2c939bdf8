"""The tensor parallelism of transformers, which shards a model by its own plan while it loads."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.distributed.distributed_c10d import _world
from torch.distributed.tensor import DTensor
from transformers.distributed.configuration_utils import DistributedConfig

from benchmarks.peers.base import Peer, Step, Unavailable, adamw

__all__ = ["Transformers"]


class Transformers(Peer):
    """transformers. Each load makes process groups whose threads use processor time, so `let_go` destroys them."""

    def __init__(self) -> None:
        self._made: list[Any] = []
        self._model: Any = None

    def let_go(self) -> None:
        self._model = None
        for group in self._made:
            dist.destroy_process_group(group)
        self._made.clear()

    def versions(self) -> dict[str, str]:
        return {"transformers": transformers.__version__}

    def from_model(self, model: nn.Module) -> Step:
        raise Unavailable("shards only while it loads")

    def from_files(self, folder: str) -> Step:
        config = DistributedConfig(tp_size=2, tp_plan="auto")
        before = set(_world.pg_map)
        model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, distributed_config=config)
        self._made += [group for group in _world.pg_map if group not in before]
        model.train()
        self._model = model
        # A fused update can't mix DTensors and plain tensors: use one parameter group for each.
        cut = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
        kept = [parameter for parameter in model.parameters() if not isinstance(parameter, DTensor)]
        optimizer = adamw([{"params": group} for group in (cut, kept) if group])

        def step(ids: torch.Tensor) -> torch.Tensor:
            loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss

        return step

    def export(self, folder: str) -> None:
        self._model.save_pretrained(f"{folder}.{dist.get_rank()}")
