"""An implementation in a world of real processes, one per rank, which may communicate with each other.

Each rank is a process that speaks the protocol. It finds its world in torchrun's environment variables: RANK,
LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT (a free port for each world). All ranks get the same case at the
same time and must give the same answer; messages name a rank that hangs or crashes.
"""

from __future__ import annotations

import dataclasses
import selectors
import socket
import time
from collections.abc import Sequence
from typing import Any

from tpinit.conformance.adapters.peer import PeerFault, PeerProcess
from tpinit.conformance.adapters.process import START_TIMEOUT, send_start
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
    """Return the ranks of each group handle of a case: contiguous groups that tile the world.

    Raises Skip for a group whose size does not divide the world size.
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
    """The processes of one world, which are asked and ended together."""

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
            replies = [
                send_start(peer, {"cmd": "start", "version": VERSION, "rank": rank, "world_size": size}, timeout)
                for rank, peer in enumerate(self.peers)
            ]
            if len(set(replies)) > 1:
                raise Broken("the ranks of one world give different replies to start")
        except BaseException:
            self.end(politely=False)
            raise
        self.who = replies[0]

    def ask(self, message: dict[str, Any], timeout: float) -> list[Any]:
        """Return the reply of each rank. Raises PeerFault, which names the rank, as soon as one fails to reply."""
        deadline = time.monotonic() + timeout
        replies: dict[int, Any] = {}
        with selectors.DefaultSelector() as selector:
            for rank, peer in enumerate(self.peers):
                with _NameRank(rank):
                    peer.send(message, deadline)
                selector.register(peer.out, selectors.EVENT_READ, rank)
            while len(replies) < len(self.peers):
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise PeerFault(self._late(replies, timeout))
                for key, _ in ready:
                    rank = key.data
                    with _NameRank(rank):
                        line = self.peers[rank].line()
                        if line is not None:
                            replies[rank] = self.peers[rank].parsed(line)
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


class _NameRank:
    """A context manager that adds the rank to the message of a PeerFault."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, PeerFault):
            named = dataclasses.replace(error.answer, message=f"rank {self.rank}: {error.answer.message}")
            raise PeerFault(named) from error


class RanksAdapter:
    """Asks each case in a world of processes, one per rank.

    It keeps one world per world size running, with at most `max_processes` processes in total. After a fault, and with
    `fresh` after every case, the world is ended and the next case of its size starts a new one. Cases with more than
    `max_world` ranks, or with a group that does not tile the world (`layout`), are skipped.
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
        """Start a world of one rank. Raises Broken if it does not start."""
        return dataclasses.replace(self._world(1).who, isolated=self.fresh)

    def dialect(self, name: str) -> bool:
        """Ask the world of one rank; each later world is asked when it starts."""
        accepted = self._speaks(self._world(1), name)
        if accepted:
            self._dialect = name
        return accepted

    def run(self, case: Case, timeout: float) -> Answer:
        """Ask all ranks one case. If their answers differ, `observed.ranks_disagree` has the answer of every rank."""
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
            raise Broken(f"asked for the dialect {name!r} the ranks reply {replies!r}")
        return bool(replies[0]["ok"])

    def _drop(self, size: int) -> None:
        self._worlds.pop(size).end(politely=False)


def _merged(answers: list[Result | Skipped | Errored | Garbage]) -> Answer:
    """Return the answer of a world: the ranks' common answer, or one that reports their difference."""
    plain_answers = [answer_to_json(answer) for answer in answers]
    for rank, answer in enumerate(answers):
        if isinstance(answer, Garbage):
            return Garbage(f"rank {rank}: {answer.message}", answer.detail)
    results = [answer for answer in answers if isinstance(answer, Result)]
    if len(results) == len(answers):
        observed: dict[str, Any] = dict(results[0].observed)
        if any(result.observed != results[0].observed for result in results):
            observed = {"ranks": [dict(result.observed) for result in results]}
            observed |= {"input_changed": True} if any(r.observed.get("input_changed") for r in results) else {}
        if any(answer != plain_answers[0] for answer in plain_answers):
            observed["ranks_disagree"] = {str(rank): answer for rank, answer in enumerate(plain_answers)}
        return Result(results[0].answer, observed)
    if all(answer == plain_answers[0] for answer in plain_answers):
        return answers[0]
    listed = "; ".join(f"rank {rank} answers {answer}" for rank, answer in enumerate(plain_answers))
    return Errored(f"the ranks disagree: {listed}")
