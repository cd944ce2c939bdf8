"""Random numbers under tensor parallelism: the same where activations are whole, others where they are cut.

Outside of cut regions every rank of a TP group draws from the same stream, so that whole activations stay equal.
Inside, each rank drops out features of its own: there it draws from a stream that is seeded by a draw from the
common one and by the rank. Activation checkpointing puts the common stream back before it computes anew, and
so gets the same streams inside.
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
_ROOM = 1 << 14  # bytes for the states of Python and numpy, which take about 6,000


class RngTracker:
    """The two streams of a model on one rank. A region is entered at its first column and left at its first row."""

    def __init__(self, model: nn.Module, tp_rank: int) -> None:
        self.tp_rank = tp_rank
        self._outside: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        model.register_forward_pre_hook(lambda *_: self._outside.clear())  # a forward that raised left one open

    def enter(self, hidden: torch.Tensor) -> None:
        """Draw from this rank's own stream from now on; nothing where that is so already."""
        if self._outside:
            return
        seed = int(torch.randint(_SEEDS, ()))
        cuda = torch.cuda.get_rng_state(hidden.device) if hidden.is_cuda else None
        self._outside.append((torch.get_rng_state(), cuda))
        torch.manual_seed(seed * 1024 + self.tp_rank)

    def leave(self, hidden: torch.Tensor) -> None:
        """Draw from the common stream again; nothing where that is so already."""
        if self._outside:
            state, cuda = self._outside.pop()
            torch.set_rng_state(state)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, hidden.device)


def broadcast_rng_state(group: ProcessGroup, device: torch.device) -> None:
    """Give all ranks of a TP group the random states of its first one: then they drop out the same features and layers.

    Of torch, and of Python and numpy, with which some models decide what layers to skip or what tokens to mask.
    """
    own = torch.get_rng_state()
    outside = bytearray(pickle.dumps(host_rng_states()).ljust(_ROOM, b"\0"))
    state = torch.cat([own, torch.frombuffer(outside, dtype=torch.uint8)]).to(device)
    dist.broadcast(state, dist.get_process_group_ranks(group)[0], group=group)
    shared = state.cpu()
    torch.set_rng_state(shared[: len(own)])
    set_host_rng_states(*pickle.loads(bytes(shared[len(own) :].tolist())))
    if device.type == "cuda":
        cuda = torch.cuda.get_rng_state(device).to(device)
        dist.broadcast(cuda, dist.get_process_group_ranks(group)[0], group=group)
        torch.cuda.set_rng_state(cuda.cpu(), device)
