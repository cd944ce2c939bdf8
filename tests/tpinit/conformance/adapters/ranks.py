"""An implementation in a world of real processes, one a rank, which may talk to each other.

Each rank is a process that speaks the protocol. It finds its world where torchrun would put it: RANK, LOCAL_RANK,
WORLD_SIZE, MASTER_ADDR and MASTER_PORT (a free port for each world). All ranks are asked the same case at the same
time and must give the same answer; a rank that hangs or crashes is named.
"""

from __future__ import annotations

import dataclasses
import selectors
import socket
import time
from collections.abc import Sequence
from typing import Any

from tpinit.conformance.adapters.peer import PeerFault, PeerProcess
from tpinit.conformance.adapters.process import START_TIMEOUT, greet
from tpinit.conformance.messages import read_answer
from tpinit.conformance.protocol import (
    VERSION,
    Answer,
    Broken,
    Case,
    Crashed,
    Errored,
    Garbage,
    Implementation,
    Result,
    Skip,
    Skipped,
    TimedOut,
    answer_to_json,
)

__all__ = ["RanksAdapter", "layout"]

GroupRanks = dict[str, tuple[tuple[int, ...], ...]]


def layout(case: Case) -> GroupRanks:
    """Give each group handle of a case its ranks: blocks of neighbours that tile the world.

    Raises Skip for a group whose size does not divide the world: no such groups can hold every rank.
    """
    world: int = case["world_size"]
    for handle, size in case["groups"].items():
        if world % size:
            raise Skip(f"groups of {size} ranks ({handle}) do not tile a world of {world}")
    return {
        handle: tuple(tuple(range(first, first + size)) for first in range(0, world, size))
        for handle, size in case["groups"].items()
    }


class _World:
    """The processes of one world. Asked together, ended together."""

    def __init__(self, command: Sequence[str], size: int, timeout: float) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.peers: list[PeerProcess] = []
        try:
            for rank in range(size):
                numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
                env = {name: str(number) for name, number in numbers.items()}
                self.peers.append(PeerProcess(command, {**env, "MASTER_ADDR": "127.0.0.1"}))
            said = [
                greet(peer, {"cmd": "start", "version": VERSION, "rank": rank, "world_size": size}, timeout)
                for rank, peer in enumerate(self.peers)
            ]
            if len(set(said)) > 1:
                raise Broken("the ranks of one world say that they are different implementations")
        except BaseException:
            self.end(politely=False)
            raise
        self.who = said[0]

    def ask(self, message: dict[str, Any], timeout: float) -> list[Any]:
        """Return what each rank says. Raises PeerFault, naming the rank, as soon as one can't answer."""
        deadline = time.monotonic() + timeout
        replies: dict[int, Any] = {}
        with selectors.DefaultSelector() as selector:
            for rank, peer in enumerate(self.peers):
                with _Naming(rank):
                    peer.send(message, deadline)
                selector.register(peer.out, selectors.EVENT_READ, rank)
            while len(replies) < len(self.peers):
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise PeerFault(self._late(replies, timeout))
                for key, _ in ready:
                    rank = key.data
                    with _Naming(rank):
                        line = self.peers[rank].line()
                        if line is not None:
                            replies[rank] = self.peers[rank].understood(line)
                            selector.unregister(key.fileobj)
        return [replies[rank] for rank in range(len(self.peers))]

    def _late(self, replies: dict[int, Any], timeout: float) -> TimedOut:
        late = [rank for rank in range(len(self.peers)) if rank not in replies]
        names = ", ".join(map(str, late))
        detail = "".join(f"rank {rank}: {self.peers[rank].evidence()}\n" for rank in late)
        return TimedOut(
            f"no answer in {timeout:g} s from rank{'s' * (len(late) > 1)} {names} of {len(self.peers)}", detail
        )

    def end(self, *, politely: bool) -> None:
        for peer in self.peers:
            peer.end(politely=politely)


class _Naming:
    """Puts the rank into a PeerFault that is raised inside."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, PeerFault):
            named = dataclasses.replace(error.answer, message=f"rank {self.rank}: {error.answer.message}")
            raise PeerFault(named) from error


class RanksAdapter:
    """Asks each case in a world of as many processes as it has ranks.

    Worlds are kept warm, one a size, and at most `max_processes` processes in all. After a fault the world is gone
    and the next case of that size gets a new one; with `fresh` every case does. Worlds of more than `max_world` ranks
    are skipped, and so are groups that do not tile their world (`layout`).
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        max_world: int = 4,
        max_processes: int = 8,
        fresh: bool = False,
        start_timeout: float = START_TIMEOUT,
    ) -> None:
        self.command = tuple(command)
        self.max_world = max_world
        self.max_processes = max(max_processes, max_world)
        self.fresh = fresh
        self.start_timeout = start_timeout
        self.starts = 0
        self._worlds: dict[int, _World] = {}
        self._dialect: str | None = None
        self._seq = 0

    def start(self) -> Implementation:
        """Raises Broken where a world of one rank does not start."""
        return dataclasses.replace(self._world(1).who, isolated=self.fresh)

    def dialect(self, name: str) -> bool:
        """Ask rank 0 of the smallest world; each later world is asked when it is made."""
        spoken = self._speaks(self._world(1), name)
        if spoken:
            self._dialect = name
        return spoken

    def run(self, case: Case, timeout: float) -> Answer:
        """Ask one case of all ranks. `observed.ranks_disagree` has every rank's answer where they differ."""
        size: int = case["world_size"]
        if size > self.max_world:
            return Skipped(f"a world of {size} ranks; here are at most {self.max_world}")
        try:
            ranks = layout(case)
            world = self._world(size)
        except Skip as reason:
            return Skipped(str(reason))
        except Broken as error:
            return Crashed(f"a world of {size} ranks did not start: {error}")
        self._seq += 1
        message = {"cmd": "run", "seq": self._seq, "case": dict(case), "ranks": ranks}
        try:
            answers = [read_answer(reply, self._seq, case) for reply in world.ask(message, timeout)]
        except PeerFault as fault:
            self._drop(size)
            return fault.answer
        answer = _merged(answers)
        if isinstance(answer, Garbage) or self.fresh:
            self._drop(size)
        return answer

    def stop(self) -> None:
        """End all worlds."""
        for world in self._worlds.values():
            world.end(politely=True)
        self._worlds.clear()

    def _world(self, size: int) -> _World:
        if size not in self._worlds:
            while self._worlds and sum(self._worlds) + size > self.max_processes:
                self._worlds.pop(next(iter(self._worlds))).end(politely=True)
            world = self._worlds[size] = _World(self.command, size, self.start_timeout)
            self.starts += 1
            if self._dialect is not None and not self._speaks(world, self._dialect):
                raise Broken(f"a world of {size} ranks does not speak {self._dialect!r}")
        return self._worlds[size]

    def _speaks(self, world: _World, name: str) -> bool:
        try:
            replies = world.ask({"cmd": "dialect", "dialect": name}, self.start_timeout)
        except PeerFault as fault:
            raise Broken(f"asked for the dialect {name!r}: {fault.answer.message}") from fault
        if replies[0] not in ({"ok": True}, {"ok": False}) or any(reply != replies[0] for reply in replies):
            raise Broken(f"asked for the dialect {name!r} the ranks say {replies!r}")
        return bool(replies[0]["ok"])

    def _drop(self, size: int) -> None:
        self._worlds.pop(size).end(politely=False)


def _merged(answers: list[Result | Skipped | Errored | Garbage]) -> Answer:
    """The answer of a world: the one that all ranks give, or that they differ."""
    said = [answer_to_json(answer) for answer in answers]
    for rank, answer in enumerate(answers):
        if isinstance(answer, Garbage):
            return Garbage(f"rank {rank}: {answer.message}", answer.detail)
    results = [answer for answer in answers if isinstance(answer, Result)]
    if len(results) == len(answers):
        observed: dict[str, Any] = dict(results[0].observed)
        if any(result.observed != results[0].observed for result in results):
            observed = {"ranks": [dict(result.observed) for result in results]}
            observed |= {"input_changed": True} if any(r.observed.get("input_changed") for r in results) else {}
        if any(one != said[0] for one in said):
            observed["ranks_disagree"] = {str(rank): one for rank, one in enumerate(said)}
        return Result(results[0].answer, observed)
    if all(one == said[0] for one in said):
        return answers[0]
    return Errored("the ranks disagree: " + "; ".join(f"rank {rank} says {one}" for rank, one in enumerate(said)))
