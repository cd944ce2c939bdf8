"""torch's `parallelize_module` as torchtitan uses it, with a vocab-parallel embedding, head and loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from benchmarks.peers.base import Peer, Step, adamw

__all__ = ["Parallelize", "ParallelizeSequence"]


class Parallelize(Peer):
    """Activations are replicated between the layers, with an all-reduce after each row-parallel layer."""

    trained: Any = None

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def plan(self) -> dict[str, ParallelStyle]:
        column, row = ColwiseParallel(), RowwiseParallel()
        return {
            "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
            **_layers(column, row),
            "lm_head": ColwiseParallel(output_layouts=Shard(-1), use_local_output=False),
        }

    def from_model(self, model: nn.Module) -> Step:
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
        parallelize_module(model, mesh, self.plan())
        cut = [parameter for parameter in model.parameters() if isinstance(parameter, DTensor)]
        kept = [parameter for parameter in model.parameters() if not isinstance(parameter, DTensor)]
        optimizer = adamw([{"params": group} for group in (cut, kept) if group])
        self.trained = (model, optimizer)

        def step(ids: torch.Tensor) -> torch.Tensor:
            positions = torch.arange(ids.shape[1])[None]
            with loss_parallel():
                logits = model(input_ids=ids, position_ids=positions).logits[:, :-1]
                loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.full_tensor() if isinstance(loss, DTensor) else loss

        return step

    def let_go(self) -> None:
        self.trained = None

    def save_state(self, folder: str) -> None:
        model, optimizer = get_state_dict(*self.trained)
        save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)

    def load_state(self, folder: str) -> None:
        model, optimizer = get_state_dict(*self.trained)
        load({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
        set_state_dict(*self.trained, model_state_dict=model, optim_state_dict=optimizer)


class ParallelizeSequence(Parallelize):
    """Sequence parallelism: between the layers each rank holds half of the sequence, and the norms are sharded."""

    def plan(self) -> dict[str, ParallelStyle]:
        column, row = ColwiseParallel(), RowwiseParallel(output_layouts=Shard(1))
        whole: dict[str, Any] = {"desired_input_layouts": (Replicate(),)}
        return {
            "model.embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
            **_layers(column, row),
            "model.layers.*.input_layernorm": SequenceParallel(),
            "model.layers.*.post_attention_layernorm": SequenceParallel(),
            "model.norm": SequenceParallel(),
            "model.layers.*.self_attn": PrepareModuleInput(
                input_kwarg_layouts={"hidden_states": Shard(1)},
                desired_input_kwarg_layouts={"hidden_states": Replicate()},
            ),
            "model.layers.*.mlp": PrepareModuleInput(input_layouts=(Shard(1),), **whole),
            "lm_head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False),
        }


def _layers(column: ParallelStyle, row: ParallelStyle) -> dict[str, ParallelStyle]:
    columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    return {f"model.layers.*.{name}": column for name in columns} | {
        f"model.layers.*.{name}": row for name in ("self_attn.o_proj", "mlp.down_proj")
    }
