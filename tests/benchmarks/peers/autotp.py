"""DeepSpeed's AutoTP for training, with its gathered head and with its vocabulary-parallel one."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from benchmarks.peers.base import Peer, Step, adamw

__all__ = ["AutoTP", "AutoTPVocabulary"]


class AutoTP(Peer):
    vocabulary = False
    engine: Any = None

    def __init__(self) -> None:
        # `import_module`, because the environment in which this file is type-checked has no DeepSpeed.
        self.deepspeed: Any = importlib.import_module("deepspeed")
        # DeepSpeed's shared-memory all-reduce serves inference only; disable it, because its C++ build takes a minute.
        ops: Any = importlib.import_module("deepspeed.ops")
        ops.__compatible_ops__["deepspeed_shm_comm"] = False

    def versions(self) -> dict[str, str]:
        return {"deepspeed": str(self.deepspeed.__version__)}

    def from_model(self, model: nn.Module) -> Step:
        engine = self.deepspeed.initialize(
            model=model,
            model_parameters=list(model.parameters()),
            optimizer=adamw,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_clipping": 0.0,  # the default clips at 1.0, which no other peer does
                "zero_optimization": {"stage": 0},
                "tensor_parallel": {"autotp_size": 2, "vocab_parallel_lm_head": self.vocabulary},
                "steps_per_print": 1 << 30,
            },
        )[0]
        engine.train()
        self.engine = engine

        def step(ids: torch.Tensor) -> torch.Tensor:
            loss: torch.Tensor = engine(input_ids=ids, labels=ids).loss
            engine.backward(loss)
            engine.step()
            return loss

        return step

    def let_go(self) -> None:
        self.engine = None

    def save_state(self, folder: str) -> None:
        self.engine.save_checkpoint(folder, tag="state")

    def load_state(self, folder: str) -> None:
        self.engine.load_checkpoint(folder, tag="state")


class AutoTPVocabulary(AutoTP):
    vocabulary = True
