"""RNG states under tensor parallelism: those that a TP group shares in a forward, and one of each rank inside a region.

In a forward of a sharded model every rank of a TP group must draw the same random numbers outside of the
tensor-parallel regions, or replicated activations differ. `SharedRng` sees to that whatever the script drew or seeded
on single ranks. Inside a region each rank applies dropout to features of its own, and `RngTracker` lets it draw from
an RNG state that is seeded with a draw from the shared state and the rank. Activation checkpointing restores the shared
state before it recomputes a forward, and so the rank's states inside are the same again.
"""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup
from tpinit.runtime.groups.devices import message_device
from tpinit.runtime.groups.digest import raw_bytes
from tpinit.runtime.groups.issuing import collective
from tpinit.runtime.parallel.device_rng import device_rng_state, seed_torch, set_device_rng_state
from tpinit.runtime.parallel.forward_scope import scope_of
from tpinit.runtime.parallel.host_rng import hash_host_rng_states, host_rng_states, seed_host_rngs, set_host_rng_states

__all__ = ["RngTracker", "SharedRng", "broadcast_rng_state", "rng_fingerprint"]

_SEEDS = 1 << 40
_HOST_STATE_BYTES = 1 << 14  # room for the pickled states of Python and numpy, which take about 6,000 bytes


@dataclass(frozen=True, slots=True)
class _RngStates:
    """The RNG states of torch on the CPU and on the model's accelerator (None without one), of Python and of numpy."""

    cpu: torch.Tensor
    accelerator: torch.Tensor | None
    host: tuple[Any, Any]


def _states(device: torch.device) -> _RngStates:
    return _RngStates(torch.get_rng_state(), device_rng_state(device), host_rng_states())


def _set_states(states: _RngStates, device: torch.device) -> None:
    torch.set_rng_state(states.cpu)
    set_device_rng_state(states.accelerator, device)
    set_host_rng_states(*states.host)


def rng_fingerprint(device: torch.device) -> int:
    """Return a 63-bit hash of the RNG states of torch, Python and numpy on this rank: equal for equal states.

    `device` is the model's: the state of an accelerator's generator is hashed too; it is in host memory.
    """
    hashed = hashlib.blake2b(raw_bytes(torch.get_rng_state()), digest_size=8)
    state = device_rng_state(device)
    if state is not None:
        hashed.update(raw_bytes(state))
    hash_host_rng_states(hashed)
    return int.from_bytes(hashed.digest(), "little") >> 1


class SharedRng:
    """Lets all ranks of a TP group draw the same random numbers from `enter` to `leave`, if their RNG states differ.

    `device` is the model's, `replica` the index of the TP group among those that train copies of the model.
    """

    def __init__(self, device: torch.device, replica: int) -> None:
        self.device = device
        self.replica = replica
        self._callers: _RngStates | None = None
        self._seeded = 0

    def enter(self, shared: int) -> None:
        """Draw from generators that are seeded with `shared`, equal on all ranks, and the replica, until `leave`."""
        self.leave()  # a forward that KeyboardInterrupt ended never left
        self._callers = _states(self.device)
        text = f"{shared} {self.replica}".encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
        seed_torch(seed, self.device)
        seed_host_rngs(seed)
        self._seeded = rng_fingerprint(self.device)

    def leave(self) -> None:
        """Restore the caller's RNG states; does nothing without an `enter` before it.

        If numbers were drawn, the caller's torch generator advances by one draw: the next forward draws others.
        """
        if self._callers is None:
            return
        drawn = rng_fingerprint(self.device) != self._seeded
        _set_states(self._callers, self.device)
        self._callers = None
        if drawn:
            torch.rand(())

    def __deepcopy__(self, _: dict[int, Any]) -> SharedRng:
        """Return a new object: a copied model runs its own forwards."""
        return SharedRng(self.device, self.replica)


_TorchStates = tuple[torch.Tensor, "torch.Tensor | None", torch.device]
"""The states of torch on the CPU and on a device (None for the CPU), and the device."""


class RngTracker:
    """Switches one rank between the shared RNG state and its own.

    A column-parallel layer enters a region, and the row-parallel layer behind it leaves the region.
    """

    def __init__(self, model: nn.Module, tp_rank: int) -> None:
        self.tp_rank = tp_rank
        self._shared_states: list[_TorchStates] = []
        self._own_states: list[_TorchStates | None] = []  # while a module inside a region draws from the shared state
        scope = scope_of(model)
        assert scope is not None, "the scope of a model is made before its layers are converted"
        # A forward that raised inside a region never left it; neither did a recomputation that was interrupted.
        scope.add(self._reset, self._restore)

    def enter(self, hidden: torch.Tensor) -> None:
        """Draw from this rank's own RNG state from now on, on the CPU and the device of `hidden`. Idempotent."""
        if self._shared_states:
            return
        seed = int(torch.randint(_SEEDS, ()))
        self._shared_states.append((torch.get_rng_state(), device_rng_state(hidden.device), hidden.device))
        seed_torch(seed * 1024 + self.tp_rank, hidden.device)

    def share_inside(self, module: nn.Module) -> None:
        """Let a module inside a region draw from the shared state: its input is whole, and so is its mask."""
        module.__dict__["tp_rng"] = self  # a copied model has the copied tracker there
        module.register_forward_pre_hook(_share)
        module.register_forward_hook(_resume, always_call=True)

    def own_outside(self, module: nn.Module) -> None:
        """Let a module outside of a region draw from this rank's own state: its input is a part of the features."""
        module.__dict__["tp_rng"] = self
        module.register_forward_pre_hook(_enter)
        module.register_forward_hook(_leave, always_call=True)

    def share(self) -> None:
        """Draw from the shared state until `resume`, also inside of a region."""
        own: _TorchStates | None = None
        if self._shared_states:
            device = self._shared_states[-1][-1]
            own = (torch.get_rng_state(), device_rng_state(device), device)
            self.leave()
        self._own_states.append(own)

    def resume(self) -> None:
        """Draw from this rank's own state again, if `share` left it."""
        own = self._own_states.pop() if self._own_states else None
        if own is not None:
            state, accelerator, device = own
            self._shared_states.append((torch.get_rng_state(), device_rng_state(device), device))
            torch.set_rng_state(state)
            set_device_rng_state(accelerator, device)

    @property
    def is_inside(self) -> bool:
        """Whether this rank draws from its own state."""
        return bool(self._shared_states)

    def _reset(self, *_: Any) -> None:
        self._own_states.clear()
        self.leave()

    def _restore(self, _: nn.Module, output: Any) -> Any:
        self.leave()
        return output

    def leave(self, *_: Any) -> None:
        """Draw from the shared RNG state again. Does nothing outside of a region."""
        if self._shared_states:
            state, accelerator, device = self._shared_states.pop()
            torch.set_rng_state(state)
            set_device_rng_state(accelerator, device)


def _share(module: Any, *_: Any) -> None:
    if module.training:
        module.tp_rng.share()


def _resume(module: Any, *_: Any) -> None:
    if module.training:
        module.tp_rng.resume()


def _enter(module: Any, args: tuple[Any, ...]) -> None:
    module.__dict__["tp_entered"] = module.training and not module.tp_rng.is_inside
    if module.tp_entered:
        module.tp_rng.enter(args[0])


def _leave(module: Any, *_: Any) -> None:
    if module.__dict__.pop("tp_entered", False):
        module.tp_rng.leave()


def broadcast_rng_state(group: ProcessGroup, device: torch.device) -> None:
    """Give every rank of a TP group the RNG states of its first rank: torch, Python and numpy, and the accelerator's.

    Some models draw from Python or numpy which layers to skip or which tokens to mask. One broadcast, two with an
    accelerator.
    """
    torch_state = torch.get_rng_state()
    host_states = bytearray(pickle.dumps(host_rng_states()).ljust(_HOST_STATE_BYTES, b"\0"))
    received = _broadcast(torch.cat([torch_state, torch.frombuffer(host_states, dtype=torch.uint8)]), group)
    torch.set_rng_state(received[: len(torch_state)])
    set_host_rng_states(*pickle.loads(bytes(received[len(torch_state) :].tolist())))
    accelerator = device_rng_state(device)
    if accelerator is not None:
        set_device_rng_state(_broadcast(accelerator, group), device)


def _broadcast(message: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """Return the message of the group's first rank, uint8 in host memory."""
    sent = message.to(message_device(group))
    collective("broadcast", "random states", sent, dist.get_process_group_ranks(group)[0], group=group)
    return sent.cpu()
