"""tpinit: `initialize` for a model in memory, and `from_pretrained` for one on disk."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch
import tpinit.runtime
from torch import nn

from benchmarks.peers.base import Peer, Step, adamw

__all__ = ["Ours"]

_CONFIG = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0, "tensor_parallel": {"autotp_size": 2}}


class Ours(Peer):
    engine: Any = None

    def versions(self) -> dict[str, str]:
        return {"tpinit": importlib.metadata.version("tpinit")}

    def from_model(self, model: nn.Module) -> Step:
        self.engine = tpinit.runtime.initialize(model=model, optimizer=adamw, config=_CONFIG)[0]
        return _step_of(self.engine)

    def from_files(self, folder: str) -> Step:
        self.engine = tpinit.runtime.from_pretrained(folder, optimizer=adamw, config=_CONFIG)[0]
        return _step_of(self.engine)

    def let_go(self) -> None:
        self.engine = None

    def save_state(self, folder: str) -> None:
        self.engine.save_checkpoint(folder, tag="state")

    def load_state(self, folder: str) -> None:
        self.engine.load_checkpoint(folder, tag="state")

    def export(self, folder: str) -> None:
        self.engine.module.save_pretrained(folder)


def _step_of(engine: Any) -> Step:
    engine.train()

    def step(ids: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        return loss

    return step
