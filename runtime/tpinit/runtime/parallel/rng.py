"""RNG states under tensor parallelism: one that the ranks of a TP group share, and one of each rank.

Outside of tensor-parallel regions every rank of a TP group draws from the shared RNG state, so that replicated
activations stay equal. Inside a region each rank applies dropout to features of its own, and draws from an RNG state
that is seeded with a draw from the shared state and the rank. Activation checkpointing restores the shared state
before it recomputes a forward, and so the rank's states inside are the same again.
"""

from __future__ import annotations

import pickle

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup
from tpinit.runtime.parallel.host_rng import host_rng_states, set_host_rng_states

__all__ = ["RngTracker", "broadcast_rng_state"]

_SEEDS = 1 << 40
_HOST_STATE_BYTES = 1 << 14  # room for the pickled states of Python and numpy, which take about 6,000 bytes


class RngTracker:
    """Switches one rank between the shared RNG state and its own.

    A column-parallel layer enters a region, and the row-parallel layer behind it leaves the region.
    """

    def __init__(self, model: nn.Module, tp_rank: int) -> None:
        self.tp_rank = tp_rank
        self._shared_states: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        # A forward that raised inside a region never left it.
        model.register_forward_pre_hook(lambda *_: self._shared_states.clear())

    def enter(self, hidden: torch.Tensor) -> None:
        """Draw from this rank's own RNG state from now on, on the CPU and the device of `hidden`. Idempotent."""
        if self._shared_states:
            return
        seed = int(torch.randint(_SEEDS, ()))
        cuda = torch.cuda.get_rng_state(hidden.device) if hidden.is_cuda else None
        self._shared_states.append((torch.get_rng_state(), cuda))
        torch.manual_seed(seed * 1024 + self.tp_rank)

    def leave(self, hidden: torch.Tensor) -> None:
        """Draw from the shared RNG state again. Does nothing outside of a region."""
        if self._shared_states:
            state, cuda = self._shared_states.pop()
            torch.set_rng_state(state)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, hidden.device)


def broadcast_rng_state(group: ProcessGroup, device: torch.device) -> None:
    """Give every rank of a TP group the RNG states of its first rank: torch, Python and numpy, and CUDA on a GPU.

    Some models draw from Python or numpy which layers to skip or which tokens to mask. One broadcast, two on CUDA.
    """
    torch_state = torch.get_rng_state()
    host_states = bytearray(pickle.dumps(host_rng_states()).ljust(_HOST_STATE_BYTES, b"\0"))
    message = torch.cat([torch_state, torch.frombuffer(host_states, dtype=torch.uint8)]).to(device)
    dist.broadcast(message, dist.get_process_group_ranks(group)[0], group=group)
    received = message.cpu()
    torch.set_rng_state(received[: len(torch_state)])
    set_host_rng_states(*pickle.loads(bytes(received[len(torch_state) :].tolist())))
    if device.type == "cuda":
        cuda = torch.cuda.get_rng_state(device).to(device)
        dist.broadcast(cuda, dist.get_process_group_ranks(group)[0], group=group)
        torch.cuda.set_rng_state(cuda.cpu(), device)
