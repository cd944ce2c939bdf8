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

FOREVER = 1e6  # seconds: the kit enforces the time limit


def serve(answer: Any, requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer requests, one line each, until `stop` or the end of the stream; a malformed one gets `errored`."""
    rank: int | None = None
    world_size = 1
    takes_context = len(inspect.signature(answer).parameters) > 1
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
            reply = _start_reply(CallableAdapter(answer))
        elif request["cmd"] == "dialect":
            reply = {"ok": CallableAdapter(answer).dialect(request["dialect"])}
        else:
            ranks = _ranks(request.get("ranks", {}))
            context = (RankContext(rank, world_size, ranks),) if rank is not None and takes_context else ()
            reply = {
                "seq": request["seq"],
                **_run_reply(CallableAdapter(answer, *context).run(request["case"], FOREVER)),
            }
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


def _start_reply(adapter: CallableAdapter) -> dict[str, Any]:
    who = adapter.start()
    return {
        "version": VERSION,
        "implementation": {"name": who.name, "version": who.version, "language": who.language},
        "dialects": list(who.dialects),
        "choices": list(who.choices),
    }


def _ranks(ranks: Mapping[str, list[list[int]]]) -> dict[str, tuple[tuple[int, ...], ...]]:
    return {handle: tuple(map(tuple, groups)) for handle, groups in ranks.items()}


def _run_reply(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Result):
        return {"result": {**answer.answer, **({"observed": answer.observed} if answer.observed else {})}}
    if isinstance(answer, Skipped):
        return {"skipped": True, "reason": answer.reason}
    if isinstance(answer, Errored):
        print(answer.detail, file=sys.stderr)  # noqa: T201 # the kit keeps the end of stderr as evidence
        return {"errored": True, "message": answer.message}
    if isinstance(answer, Crashed):
        raise SystemExit(answer.message)
    # An invalid answer is sent on as an invalid reply, so that the kit reports it.
    return {"result": None, "garbage": answer.message}


def main() -> None:
    """Serve the object named on the command line."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m tpinit.conformance.server PKG:OBJECT")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    found = resolve_object(sys.argv[1])
    serve(found() if isinstance(found, type) else found, sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
