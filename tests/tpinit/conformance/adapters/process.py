"""An implementation in a process of its own, in any language: JSON lines over stdin and stdout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tpinit.conformance.adapters.peer import PeerFault, PeerProcess
from tpinit.conformance.dialects import CHOICES
from tpinit.conformance.messages import read_answer, read_implementation
from tpinit.conformance.protocol import VERSION, Answer, Broken, Case, Crashed, Garbage, Implementation, TimedOut

__all__ = ["ProcessAdapter", "send_start"]

START_TIMEOUT = 60.0  # seconds, for interpreters and libraries that are slow to load


def send_start(peer: PeerProcess, message: dict[str, object], timeout: float) -> Implementation:
    """Send `start` to a new process and return its reply. Raises Broken for a missing or malformed reply."""
    try:
        return read_implementation(peer.ask(message, timeout), tuple(CHOICES))
    except PeerFault as fault:
        raise Broken(f"it does not start: {fault.answer.message}{_indented(fault.answer.detail)}") from fault


def _indented(text: str) -> str:
    return "".join(f"\n    {line}" for line in text.strip().splitlines()[-20:])


class ProcessAdapter:
    """Runs a command and asks it cases. After a crash, a hang or garbage the next case gets a new process.

    With `fresh` every case gets a new process, so that no state can pass from one case to the next.
    """

    def __init__(self, command: Sequence[str], *, fresh: bool = False, start_timeout: float = START_TIMEOUT) -> None:
        self.command = tuple(command)
        self.fresh = fresh
        self.start_timeout = start_timeout
        self.starts = 0
        self._peer: PeerProcess | None = None
        self._who: Implementation | None = None
        self._dialect: str | None = None
        self._seq = 0
        self._stray = b""

    def start(self) -> Implementation:
        """Start the command. Raises Broken if it can't be started, or if its reply to `start` is malformed."""
        peer = PeerProcess(self.command)
        self.starts += 1
        try:
            reply = send_start(peer, {"cmd": "start", "version": VERSION}, self.start_timeout)
            who = replace(reply, isolated=self.fresh)
            if self._who is not None and who != self._who:
                raise Broken(f"started again it gives another reply to start, as {who.name} {who.version}")
        except BaseException:
            peer.end(politely=False)
            raise
        self._peer, self._who = peer, who
        return who

    def dialect(self, name: str) -> bool:
        """Return whether it speaks the dialect. Raises Broken if its reply is malformed."""
        if self._peer is None:
            self.start()
        assert self._peer is not None
        try:
            reply = self._peer.ask({"cmd": "dialect", "dialect": name}, self.start_timeout)
        except PeerFault as fault:
            self._drop()
            raise Broken(f"asked for the dialect {name!r}: {fault.answer.message}") from fault
        if not isinstance(reply, dict) or set(reply) != {"ok"} or not isinstance(reply["ok"], bool):
            raise Broken(f'asked for the dialect {name!r} it replies {reply!r}, not {{"ok": true}} or {{"ok": false}}')
        if reply["ok"]:
            self._dialect = name
        return reply["ok"]

    def run(self, case: Case, timeout: float) -> Answer:
        """Ask one case, in a new process if none is running."""
        if self._peer is not None and (stray := self._peer.stray()):
            self._stray = self._stray or stray
            self._drop()
        try:
            self._renew()
        except Broken as error:
            self._drop()
            return Crashed(f"it did not start again: {error}")
        assert self._peer is not None
        self._seq += 1
        answer: Answer
        try:
            reply = self._peer.ask({"cmd": "run", "seq": self._seq, "case": dict(case)}, timeout)
            answer = read_answer(reply, self._seq, case)
        except PeerFault as fault:
            answer = fault.answer
        if isinstance(answer, (Crashed, TimedOut, Garbage)):
            self._drop()
        elif self.fresh:
            self._finish()
        return answer

    def stop(self) -> None:
        """End the process. Raises Broken if it wrote output that no request asked for."""
        self._finish()
        if self._stray:
            stray, self._stray = self._stray, b""
            raise Broken(f"it writes more than its replies: {stray[:80].decode(errors='backslashreplace')!r}")

    def _renew(self) -> None:
        if self._peer is None:
            self.start()
            if self._dialect is not None and not self.dialect(self._dialect):
                raise Broken(f"it no longer speaks {self._dialect!r}")

    def _finish(self) -> None:
        if self._peer is not None:
            self._peer.end(politely=True)
            self._stray = self._stray or self._peer.stray()
            self._peer = None

    def _drop(self) -> None:
        if self._peer is not None:
            self._peer.end(politely=False)
            self._peer = None
