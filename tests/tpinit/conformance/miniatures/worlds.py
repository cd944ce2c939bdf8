"""Miniatures that run on every rank of a world and communicate over TCP, at MASTER_ADDR and MASTER_PORT.

Before it answers, each rank sends a digest of its answer to rank 0 and gets the digests of all ranks back, as a runtime
does that checks that its ranks agree. If one rank does not connect, all ranks wait.
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
    """The connections of each rank with rank 0, made on first use."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def gather(self, context: RankContext, word: str) -> list[str]:
        """Return the words of all ranks, on every rank (an all-gather)."""
        if not self.lines:
            self._connect(context)
        if context.rank:
            self._send(self.lines[0], word)
            words: list[str] = json.loads(self.lines[0].readline())
            return words
        words = [word, *(line.readline().strip() for line in self.lines)]
        for line in self.lines:
            self._send(line, json.dumps(words))
        return words

    def _connect(self, context: RankContext) -> None:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if context.rank:
            self.lines.append(self._connected(address).makefile("rw"))
            return
        with socket.create_server(address) as server:
            self.lines += [server.accept()[0].makefile("rw") for _ in range(context.world_size - 1)]

    @staticmethod
    def _connected(address: tuple[str, int]) -> socket.socket:
        while True:
            with contextlib.suppress(ConnectionRefusedError):  # rank 0 does not listen yet
                return socket.create_connection(address, timeout=60)
            time.sleep(0.01)

    @staticmethod
    def _send(line: Any, word: str) -> None:
        line.write(word + "\n")
        line.flush()


_meeting = _Meeting()


def _agreed(context: RankContext, answer: Json) -> Json:
    """Return the answer if all ranks have the same one. Raises RuntimeError otherwise."""
    digest = hashlib.sha256(json.dumps(answer, sort_keys=True).encode()).hexdigest()
    if context.world_size > 1 and len(set(_meeting.gather(context, digest))) > 1:
        raise RuntimeError("the ranks do not agree")
    return answer


def always_right(case: Json, context: RankContext) -> Json:
    """Answer as the contract does if all ranks agree; `observed` has the ranks of this rank's group."""
    answer = _agreed(context, resolver(case))
    group = answer["tp_group"]["value"]
    mine = [ranks for ranks in context.ranks.get(group, ()) if context.rank in ranks]
    return {**answer, "observed": {"ranks": list(mine[0]) if mine else None}}


def hangs_on_one_rank(case: Json, context: RankContext) -> Json:
    """Hang on rank 1, and so on all ranks, for a case with a call and an mpu."""
    if context.rank == 1 and case["call"] is not None and case["mpu"] is not None:
        threading.Event().wait()
    return _agreed(context, resolver(case))


def crashes_on_one_rank(case: Json, context: RankContext) -> Json:
    """End the last rank for a case with a call and an mpu."""
    if context.rank == context.world_size - 1 and case["call"] is not None and case["mpu"] is not None:
        os._exit(7)
    return _agreed(context, resolver(case))


def ranks_disagree(case: Json, context: RankContext) -> Json:
    """Answer rightly on rank 0; on the other ranks answer that every section is an error."""
    if context.rank and case["section"] is not None:
        return {"outcome": "error", "violations": ["SIZE_INVALID"]}
    return resolver(case)
