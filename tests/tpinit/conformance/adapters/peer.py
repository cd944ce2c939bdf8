"""One process of an implementation: requests to its stdin, replies from its stdout, each within a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tpinit.conformance.messages import check_request
from tpinit.conformance.protocol import Broken, Crashed, Garbage, KitError, TimedOut

__all__ = ["PeerFault", "PeerProcess"]

MAX_LINE = 1 << 20  # bytes of one answer
TAIL = 2000  # characters of stderr that are kept as evidence
GRACE = 2.0  # seconds that a process has to end after `stop`


class PeerFault(Exception):
    """The process crashed, was late or sent an invalid reply; `answer` says which."""

    def __init__(self, answer: Crashed | TimedOut | Garbage) -> None:
        super().__init__(answer.message)
        self.answer = answer


class PeerProcess:
    """A process that speaks the protocol over stdio. It leads a process group, which `end` ends as a whole."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Start the process; `env` extends the kit's environment. Raises Broken if the command can't be started."""
        # PYTEST_CURRENT_TEST holds the vector's id, which contains the expected answer.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 # `end` closes it
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env={**inherited, **(env or {})},
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            self._stderr.close()
            raise Broken(f"{command[0]!r} can't be started: {error.strerror}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in = self._process.stdin.fileno()
        self.out = self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self.out, False)
        self._buffer = b""
        self._eof = False

    def ask(self, message: Mapping[str, Any], timeout: float) -> Any:
        """Send one message and return the reply. Raises PeerFault unless it is one line of JSON within `timeout` s."""
        deadline = time.monotonic() + timeout
        self.send(message, deadline)
        while (line := self.line()) is None:
            if not _ready(self.out, selectors.EVENT_READ, deadline):
                raise PeerFault(TimedOut(f"no answer in {timeout:g} s", self.evidence()))
        return self.parsed(line)

    def send(self, message: Mapping[str, Any], deadline: float) -> None:
        """Send one message. Raises KitError for a malformed one, PeerFault if the process does not read it in time."""
        problems = check_request(message)
        if problems:
            raise KitError("; ".join(problems))
        left = memoryview(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        while left:
            written = self._write(left)
            left = left[written:]
            if not written and not _ready(self._in, selectors.EVENT_WRITE, deadline):
                raise PeerFault(TimedOut("it does not read its stdin", self.evidence()))

    def _write(self, line: memoryview) -> int:
        try:
            return os.write(self._in, line)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise PeerFault(self._ended()) from None

    def line(self) -> bytes | None:
        """Return the next line, or None if none is complete yet. Raises PeerFault if the process has ended."""
        self._read_available()
        line, newline, rest = self._buffer.partition(b"\n")
        if newline:
            self._buffer = rest
            return line
        if len(self._buffer) > MAX_LINE:
            raise PeerFault(Garbage(f"a line of more than {MAX_LINE} bytes", self.evidence()))
        if self._eof:
            raise PeerFault(self._ended())
        return None

    def parsed(self, line: bytes) -> Any:
        """Return the JSON of a line. Raises PeerFault if it is not JSON, or if more output follows it."""
        if self._buffer:
            raise PeerFault(Garbage("more than one line for one request", self.evidence()))
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            shown = line[:80].decode(errors="backslashreplace")
            raise PeerFault(Garbage(f"not a line of JSON: {shown!r}", self.evidence())) from None

    def stray(self) -> bytes:
        """Return output that no request asked for."""
        self._read_available()
        return self._buffer

    def evidence(self) -> str:
        """Return the end of the process's stderr."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - TAIL))
        return self._stderr.read().decode(errors="replace")

    def end(self, *, politely: bool) -> None:
        """End the process group; with `politely` send `stop` first and wait GRACE seconds."""
        if self._process.returncode is not None:
            return
        if politely:
            with contextlib.suppress(PeerFault):
                self.send({"cmd": "stop"}, time.monotonic() + GRACE)
        for pipe in (self._process.stdin, self._process.stdout):
            if politely and pipe is self._process.stdout:
                self._wait(GRACE)
                self._read_available()
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS raises the latter for zombies
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stderr.close()
        self._eof = True

    def _wait(self, seconds: float) -> None:
        """Wait for the process to end, and do not reap it: until then its process group id can't be reused."""
        deadline = time.monotonic() + seconds
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while os.waitid(os.P_PID, self._process.pid, flags) is None and time.monotonic() < deadline:
            time.sleep(0.002)

    def _read_available(self) -> None:
        while not self._eof and len(self._buffer) <= MAX_LINE:
            try:
                chunk = os.read(self.out, 1 << 16)
            except BlockingIOError:
                return
            self._buffer += chunk
            self._eof = not chunk

    def _ended(self) -> Crashed:
        self._wait(GRACE)
        state = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if state is None:
            return Crashed("it closed its stdout", self.evidence())
        if state.si_code == os.CLD_EXITED:
            return Crashed(f"exit code {state.si_status}", self.evidence())
        return Crashed(f"signal {signal.Signals(state.si_status).name}", self.evidence())


def _ready(fd: int, event: int, deadline: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(fd, event)
        return bool(selector.select(max(0.0, deadline - time.monotonic())))
