"""Runs the real command in a process of its own, as a user would."""

import os
import pathlib
import subprocess
import sys
import sysconfig
from dataclasses import dataclass

import pytest

SCRIPT = pathlib.Path(sysconfig.get_path("scripts")) / "tpinit"


@dataclass(frozen=True)
class Run:
    """The command, run in a folder."""

    cwd: pathlib.Path

    def __call__(self, *arguments, stdin="", script=False, **env):
        command = [str(SCRIPT)] if script else [sys.executable, "-m", "tpinit.cli.main"]
        clean = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "COLUMNS")}
        return subprocess.run(
            [*command, *map(os.fspath, arguments)],
            cwd=self.cwd,
            input=stdin if isinstance(stdin, bytes) else stdin.encode(),
            capture_output=True,
            timeout=60,
            env=clean | {"COLUMNS": "100", "PYTHONUTF8": "1"} | env,
        )

    def write(self, content, name="ds.json"):
        path = self.cwd / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path


@pytest.fixture
def tpinit(tmp_path):
    return Run(tmp_path)


@pytest.fixture
def refused():
    """Asserts that a run ended as malformed: exit code 2, nothing on stdout, one error without a traceback."""

    def check(result, *words):
        error = result.stderr.decode()
        assert result.returncode == 2, error
        assert result.stdout == b""
        assert error.startswith("tpinit: error: ")
        assert "Traceback" not in error
        assert "\n\n" not in error.strip()  # one paragraph
        assert len(error) < 2000  # however long the input
        for word in words:
            assert word in error
        return error

    return check
