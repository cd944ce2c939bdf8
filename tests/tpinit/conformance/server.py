"""Serves a Python implementation over stdio: `python -m tpinit.conformance.server PKG:OBJECT`.

OBJECT is a function `answer(case) -> result`, as for an in-process adapter. In a world of ranks a function of two
parameters also gets the rank's `RankContext`: `answer(case, context) -> result`. Whatever the function prints goes to
stderr, because stdout carries the answers.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Mapping
from typing import IO, Any

from tpinit.conformance.adapters import resolve_object
from tpinit.conformance.adapters.inprocess import CallableAdapter
from tpinit.conformance.messages import check_request
from tpinit.conformance.protocol import VERSION, Answer, Crashed, Errored, RankContext, Result, Skipped

__all__ = ["main", "serve"]

FOREVER = 1e6  # seconds: the kit is the one that keeps the time


def serve(answer: Any, requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer requests, one line each, until `stop` or the end of them. Malformed ones are answered as errored."""
    rank: int | None = None
    world_size = 1
    takes_place = len(inspect.signature(answer).parameters) > 1
    for line in requests:
        request = json.loads(line)
        problems = check_request(request)
        if problems:
            reply: dict[str, Any] = {
                "seq": request.get("seq", -1),
                "errored": True,
                "message": "malformed request: " + "; ".join(problems),
            }
        elif request["cmd"] == "stop":
            return
        elif request["cmd"] == "start":
            rank, world_size = request.get("rank"), request.get("world_size", 1)
            reply = _introduced(CallableAdapter(answer))
        elif request["cmd"] == "dialect":
            reply = {"ok": CallableAdapter(answer).dialect(request["dialect"])}
        else:
            ranks = _ranks(request.get("ranks", {}))
            more = (RankContext(rank, world_size, ranks),) if rank is not None and takes_place else ()
            reply = {
                "seq": request["seq"],
                **_said(CallableAdapter(answer, *more).run(request["case"], FOREVER)),
            }
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def _introduced(adapter: CallableAdapter) -> dict[str, Any]:
    who = adapter.start()
    return {
        "version": VERSION,
        "implementation": {"name": who.name, "version": who.version, "language": who.language},
        "dialects": list(who.dialects),
        "choices": list(who.choices),
    }


def _ranks(ranks: Mapping[str, list[list[int]]]) -> dict[str, tuple[tuple[int, ...], ...]]:
    return {handle: tuple(map(tuple, groups)) for handle, groups in ranks.items()}


def _said(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Result):
        return {"result": {**answer.answer, **({"observed": answer.observed} if answer.observed else {})}}
    if isinstance(answer, Skipped):
        return {"skipped": True, "reason": answer.reason}
    if isinstance(answer, Errored):
        print(answer.detail, file=sys.stderr)  # noqa: T201 # evidence, where the kit looks for it
        return {"errored": True, "message": answer.message}
    if isinstance(answer, Crashed):
        raise SystemExit(answer.message)
    # What is not an answer here is not one at the other end either; sent as it is, so that the kit sees it.
    return {"result": None, "garbage": answer.message}


def main() -> None:
    """Serve the object that the command line names."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m tpinit.conformance.server PKG:OBJECT")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    found = resolve_object(sys.argv[1])
    serve(found() if isinstance(found, type) else found, sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
