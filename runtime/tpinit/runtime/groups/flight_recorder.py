"""The flight recorder: the last collectives of each rank by name, which the other ranks read when one of them fails.

Each process keeps a ring of what it issued last, in memory without a name in any file system. At `initialize` the
ranks of one host map each other's ring, so that they can read it also when its process hangs or was killed. Ranks of
other hosts put theirs into the store of the world when a collective fails there.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tpinit.runtime.internals.torch_private import default_store

__all__ = [
    "SLOTS",
    "FlightRecorder",
    "flight_recorder",
    "map_peers",
    "own_address",
    "rank_histories",
    "shown_histories",
]

SLOTS = 32
"""The collectives that a rank remembers."""

_HEADER = struct.Struct("<16sQQ")  # token, process id, start time of the process
_SLOT = struct.Struct("<QB183s")  # number, whether it is done, text
_FIRST = 64
_SIZE = _FIRST + SLOTS * _SLOT.size
_SHOWN = 4  # collectives of each rank in an error
_RANKS = 8  # ranks in an error
_WAIT = 1.0  # seconds: a rank that was killed is gone at about the time when its connections are
_POLL = 0.02
_RUNNING, _DONE, _NOTE = 0, 1, 2


class FlightRecorder:
    """The ring of this process. `count` is the number of collectives that it has issued."""

    def __init__(self) -> None:
        self.count = 0
        self.token = secrets.token_bytes(16)
        self.handle, self._memory = _shared_memory()
        _HEADER.pack_into(self._memory, 0, self.token, os.getpid(), _start_time(os.getpid()) or 0)

    def begin(self, text: bytes) -> int:
        """Record that a collective is issued, and return its number, from 1 on."""
        number = self.count = self.count + 1
        _SLOT.pack_into(self._memory, _place(number), number, _RUNNING, text)
        return number

    def end(self, number: int) -> None:
        """Record that a collective is done on this rank: on an accelerator, that it was enqueued."""
        if self.count - number < SLOTS:
            self._memory[_place(number) + 8] = _DONE

    def note(self, text: str) -> None:
        """Record something else that other ranks may wonder about."""
        _SLOT.pack_into(self._memory, _place(self.count + 1), self.count + 1, _NOTE, _fit(text))
        self.count += 1

    def last(self, count: int = _SHOWN) -> list[str]:
        """Return the last records in words, oldest first."""
        return _records(self._memory)[-count:]


def _place(number: int) -> int:
    return _FIRST + (number - 1) % SLOTS * _SLOT.size


def _fit(text: str) -> bytes:
    return text.encode(errors="replace")[:183]


def _shared_memory() -> tuple[int | None, mmap.mmap]:
    """Return memory that another process of this host can map by /proc, while this one lives; it leaves no file."""
    try:
        handle = os.memfd_create("tpinit flight recorder")
        os.ftruncate(handle, _SIZE)
        return handle, mmap.mmap(handle, _SIZE)
    except (AttributeError, OSError):  # not Linux, or not allowed: memory of this process alone
        return None, mmap.mmap(-1, _SIZE)


def _records(memory: Any) -> list[str]:
    found = []
    for slot in range(SLOTS):
        number, state, text = _SLOT.unpack_from(memory, _FIRST + slot * _SLOT.size)
        if number:
            found.append((number, state, text.rstrip(b"\0").decode(errors="replace")))
    return [f"{number} {text}{' (not done)' if state == _RUNNING else ''}" for number, state, text in sorted(found)]


def _start_time(pid: int) -> int | None:
    """Return when a process of this host began, in clock ticks; None if it has ended, 0 where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else 0
    except (OSError, UnicodeDecodeError):
        return 0
    return None if fields[0] in "ZX" else int(fields[19])


_recorder: FlightRecorder | None = None


def flight_recorder() -> FlightRecorder:
    """Return the recorder of this process."""
    global _recorder
    if _recorder is None:
        _recorder = FlightRecorder()
    return _recorder


def _after_fork() -> None:
    global _recorder
    _recorder = None  # a worker of a data loader must not write into the ring of its parent
    _peers.clear()


@dataclass(frozen=True, slots=True)
class _Peer:
    """The ring of another process of this host."""

    memory: mmap.mmap
    pid: int
    start: int

    def ended(self) -> bool:
        return _start_time(self.pid) not in (self.start, 0)

    def failed(self) -> bool:
        """Return whether its process ended, or the last that it recorded is no collective but an error."""
        return self.ended() or max(_SLOT.iter_unpack(self.memory[_FIRST:]), key=lambda slot: slot[0])[1] == _NOTE


_peers: dict[int, _Peer] = {}  # by rank, those of the present world on this host
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def own_address() -> dict[str, Any]:
    """Return where other processes of this host find the ring of this one."""
    recorder = flight_recorder()
    return {"host": _host(), "pid": os.getpid(), "handle": recorder.handle, "token": recorder.token.hex()}


def _host() -> str:
    """Return a text that is equal for two processes only if they see each other in /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def map_peers(addresses: Sequence[dict[str, Any]], own_rank: int) -> None:
    """Map the rings of the ranks on this host, given the `own_address` of every rank of the world."""
    _peers.clear()
    host = _host()
    for rank, address in enumerate(addresses):
        if rank == own_rank or not host or address["host"] != host or address["handle"] is None:
            continue
        try:
            handle = os.open(f"/proc/{address['pid']}/fd/{address['handle']}", os.O_RDONLY)
        except OSError:  # it has ended, or belongs to another user
            continue
        try:
            memory = mmap.mmap(handle, _SIZE, prot=mmap.PROT_READ)
        except (OSError, ValueError):
            continue
        finally:
            os.close(handle)
        token, pid, start = _HEADER.unpack_from(memory, 0)
        if token.hex() == address["token"]:
            _peers[rank] = _Peer(memory, pid, start)


def rank_histories(ranks: Sequence[int]) -> str:
    """Return the last collectives of each of these ranks, in words, for an error; at most a second is waited.

    Of a rank on another host they are known only if a collective failed there too.
    """
    own = dist.get_rank() if dist.is_initialized() else 0
    others = [rank for rank in ranks if rank != own]
    remote = [rank for rank in others if rank not in _peers]
    told = _exchange(own, remote) if remote else {}
    deadline = time.monotonic() + _WAIT
    mapped = [_peers[rank] for rank in others if rank in _peers]
    while mapped and not any(peer.failed() for peer in mapped) and time.monotonic() < deadline:
        time.sleep(_POLL)
    entries = {own: (f"rank {own}", flight_recorder().last())}
    for rank in others:
        peer = _peers.get(rank)
        if peer is not None:
            entries[rank] = (f"rank {rank}{', whose process ended' if peer.ended() else ''}", _records(peer.memory))
        elif rank in told:
            entries[rank] = (f"rank {rank}", told[rank])
        else:
            entries[rank] = (f"rank {rank} has not told them: it ended, or did not notice the failure", [])
    return _shown(entries, own)


def shown_histories(told: Mapping[int, Sequence[str]]) -> str:
    """Return what the ranks told of their last collectives, in words, for an error that is equal on all of them."""
    return _shown({rank: (f"rank {rank}", list(records)) for rank, records in told.items()}, -1)


def _shown(entries: dict[int, tuple[str, list[str]]], own: int) -> str:
    """Return the entries in words: all of few ranks; of many, this one and those that are furthest behind."""
    order = sorted(entries, key=lambda rank: (rank != own, _last_number(entries[rank][1])))
    lines = ["the last collectives of each rank, as number, what, where, shape, dtype, ranks:"]
    for rank in sorted(order[:_RANKS]):
        title, records = entries[rank]
        lines += [f"  {title}", *(f"    {record}" for record in records[-_SHOWN:])]
    if len(order) > _RANKS:
        lines.append(f"  and {len(order) - _RANKS} more ranks, which are as far or further")
    return "\n".join(lines)


def _last_number(records: Sequence[str]) -> int:
    return int(records[-1].partition(" ")[0]) if records else 0


def _exchange(own: int, others: Sequence[int]) -> dict[int, list[str]]:
    """Put this rank's records into the store of the world, and return those of the others that do so in time."""
    told: dict[int, list[str]] = {}
    try:
        store = default_store()
        store.set(f"tpinit/flight/{own}", json.dumps(flight_recorder().last()))
        deadline = time.monotonic() + _WAIT
        while len(told) < len(others) and time.monotonic() < deadline:
            for rank in others:
                if rank not in told and store.check([f"tpinit/flight/{rank}"]):
                    told[rank] = list(json.loads(store.get(f"tpinit/flight/{rank}")))
            time.sleep(_POLL)
    except (RuntimeError, ValueError):  # the store is gone with the rank that held it
        pass
    return told
