"""Miniatures that run on every rank of a world and talk to each other, over TCP, where torchrun says they meet.

Before it answers, each rank sends a digest of its answer to rank 0 and gets all of them back, as a runtime does that
makes its ranks agree. So where one rank does not come, all of them wait.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from typing import Any

from tpinit.conformance.adapters.reference import adapter as resolver
from tpinit.conformance.protocol import RankContext
from tpinit.conformance.vectors import Json

__all__ = ["always_right", "crashes_on_one_rank", "hangs_on_one_rank", "ranks_disagree"]


class _Meeting:
    """One connection of each rank to rank 0, made when it is first needed."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def gather(self, place: RankContext, word: str) -> list[str]:
        """Return what all ranks say, on every rank."""
        if not self.lines:
            self._connect(place)
        if place.rank:
            self._say(self.lines[0], word)
            heard: list[str] = json.loads(self.lines[0].readline())
            return heard
        words = [word, *(line.readline().strip() for line in self.lines)]
        for line in self.lines:
            self._say(line, json.dumps(words))
        return words

    def _connect(self, place: RankContext) -> None:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if place.rank:
            self.lines.append(self._reached(address).makefile("rw"))
            return
        with socket.create_server(address) as server:
            self.lines += [server.accept()[0].makefile("rw") for _ in range(place.world_size - 1)]

    @staticmethod
    def _reached(address: tuple[str, int]) -> socket.socket:
        while True:
            with contextlib.suppress(ConnectionRefusedError):  # rank 0 is not there yet
                return socket.create_connection(address, timeout=60)
            time.sleep(0.01)

    @staticmethod
    def _say(line: Any, word: str) -> None:
        line.write(word + "\n")
        line.flush()


_meeting = _Meeting()


def _agreed(place: RankContext, answer: Json) -> Json:
    """The answer, once all ranks have said that they have the same one."""
    digest = hashlib.sha256(json.dumps(answer, sort_keys=True).encode()).hexdigest()
    if place.world_size > 1 and len(set(_meeting.gather(place, digest))) > 1:
        raise RuntimeError("the ranks do not agree")
    return answer


def always_right(case: Json, place: RankContext) -> Json:
    """Answer as the contract does, when all ranks agree; show the group that this rank is in."""
    answer = _agreed(place, resolver(case))
    group = answer["tp_group"]["value"]
    mine = [ranks for ranks in place.ranks.get(group, ()) if place.rank in ranks]
    return {**answer, "observed": {"ranks": list(mine[0]) if mine else None}}


def hangs_on_one_rank(case: Json, place: RankContext) -> Json:
    """Leave rank 1 waiting, and with it all the others, where a call meets an mpu."""
    if place.rank == 1 and case["call"] is not None and case["mpu"] is not None:
        threading.Event().wait()
    return _agreed(place, resolver(case))


def crashes_on_one_rank(case: Json, place: RankContext) -> Json:
    """End the last rank where a call meets an mpu."""
    if place.rank == place.world_size - 1 and case["call"] is not None and case["mpu"] is not None:
        os._exit(7)
    return _agreed(place, resolver(case))


def ranks_disagree(case: Json, place: RankContext) -> Json:
    """Answer rightly on rank 0, and on the others that a section is an error."""
    if place.rank and case["section"] is not None:
        return {"outcome": "error", "violations": ["SIZE_INVALID"]}
    return resolver(case)
