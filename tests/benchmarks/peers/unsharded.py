"""The unsharded model in one process of one thread; half of its step time is the ideal for two ranks."""

from __future__ import annotations

import torch
import transformers
from torch import nn

from benchmarks.peers.base import Peer, Step, adamw

__all__ = ["Unsharded"]


class Unsharded(Peer):
    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    def from_model(self, model: nn.Module) -> Step:
        optimizer = adamw(model.parameters())

        def step(ids: torch.Tensor) -> torch.Tensor:
            loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss

        return step
