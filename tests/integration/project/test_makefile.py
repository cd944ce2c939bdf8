"""The doors of the project: make, the demo and .ci/run say the truth about what failed."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from support.paths import ROOT


def call(*command, cwd, **env):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE", "VIRTUAL_ENV"))}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env=clean | env,
    )


@pytest.fixture
def frame(tmp_path):
    """A tree with the frame only: what `make venv` reads."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_help_lists_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    shown = re.findall(r"^  make ([\w-]+)", call("make", "help", cwd=ROOT).stdout, re.MULTILINE)
    assert sorted(shown) == sorted(phony.split())


def test_a_finished_environment_is_not_made_again(frame):
    (frame / ".venv").mkdir()
    (frame / ".venv/.installed").touch()
    assert call("make", "--question", "venv", cwd=frame).returncode == 0


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_change_of_what_is_installed_makes_it_again(frame, name):
    (frame / ".venv").mkdir()
    (frame / ".venv/.installed").touch()
    future = (frame / ".venv/.installed").stat().st_mtime + 10
    os.utime(frame / name, (future, future))
    assert call("make", "--question", "venv", cwd=frame).returncode == 1


def test_a_failed_install_fails_aloud_and_is_never_taken_for_a_whole_one(frame):
    # pip really runs, and finds nothing: no index, no links, no configuration of the machine.
    env = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PYTHON": sys.executable}
    result = call("make", "venv", cwd=frame, **env)
    assert result.returncode != 0
    assert "No matching distribution found for torch==" in result.stderr
    assert not (frame / ".venv/.installed").exists()
    assert call("make", "--question", "venv", cwd=frame, **env).returncode == 1


def test_a_python_that_is_too_old_is_named(frame):
    old = frame / "python3"
    old.write_text(
        f"#!/bin/sh\nshift\nexec '{sys.executable}' -c \"import sys; sys.version_info = type('V', (tuple,), "
        'dict(major=3, minor=9))((3, 9)); $1"\n'
    )
    old.chmod(0o755)
    result = call("make", "venv", cwd=frame, PYTHON=str(old))
    assert result.returncode != 0
    assert "tpinit needs Python 3.10 or newer" in result.stderr
    assert not (frame / ".venv").exists()


@pytest.fixture
def demo(tmp_path):
    """Runs the demo with a tpinit whose subcommands exit as told, and resolve as the real one does unless told."""

    def run(**exits):
        fake = tmp_path / "tpinit"
        cases = "".join(f"{command}) exit {status};;\n" for command, status in exits.items())
        fake.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}esac\nexec \'{sys.executable}\' -m tpinit.cli.main "$@"\n')
        fake.chmod(0o755)
        python = tmp_path / "python"  # of the fifth part, which has its own test
        python.write_text("#!/bin/sh\ncase $1 in *generate.py) echo 'Beautiful is better than ugly.';; esac\n")
        python.chmod(0o755)
        return call("bash", ROOT / "examples/demo.sh", cwd=ROOT, BIN=str(tmp_path))

    return run


def test_the_demo_passes_where_its_parts_do(demo):
    result = demo(prove=0, train=0)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "exit code 1, as expected" in result.stdout
    assert "all 5 parts" in result.stdout


@pytest.mark.parametrize("exits", [{"prove": 1, "train": 0}, {"prove": 0, "train": 1}, {"prove": 0, "resolve": 2}])
def test_the_demo_fails_where_a_part_does(demo, exits):
    result = demo(**exits)
    assert result.returncode != 0
    assert "all 5 parts" not in result.stdout


def test_the_demo_fails_where_a_conflict_goes_unseen(demo):
    result = demo(prove=0, train=0, resolve=0)
    assert result.returncode == 1
    assert "expected exit code 1 (violations of the contract), got 0" in result.stderr


@pytest.fixture
def ci(tmp_path):
    """Runs .ci/run in a tree whose make targets and proofs exit as told."""

    def run(**exits):
        (tmp_path / ".ci").mkdir()
        (tmp_path / ".venv/bin").mkdir(parents=True)
        shutil.copy(ROOT / ".ci/run", tmp_path / ".ci")
        names = re.findall(r"make --no-print-directory (\S+)", (ROOT / ".ci/run").read_text(encoding="utf-8"))
        assert set(exits) <= {*names, "prove", "apt-get"}
        targets = [f"{name}:\n\t@exit {exits.get(name, 0)}\n" for name in names]
        (tmp_path / "Makefile").write_text("".join(targets))
        tpinit = tmp_path / ".venv/bin/tpinit"
        tpinit.write_text(f"#!/bin/sh\nexit {exits.get('prove', 0)}\n")
        tpinit.chmod(0o755)
        # Nothing else is on the path, so that whether this machine has a browser makes no difference.
        programs = tmp_path / "bin"
        programs.mkdir()
        for name in ("bash", "sh", "make", "dirname"):
            (programs / name).symlink_to(shutil.which(name))
        wanted = "apt-get" if "apt-get" in exits else "chromium"
        (programs / wanted).write_text(f'#!/bin/sh\necho asked {wanted} "$@"\nexit {exits.get(wanted, 0)}\n')
        (programs / wanted).chmod(0o755)
        return call("bash", ".ci/run", cwd=tmp_path, PATH=str(programs))

    return run


def test_ci_says_what_ran(ci):
    result = ci()
    assert result.returncode == 0, result.stderr
    parts = re.findall(r'^part "(.+?)"', (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"^ci: ok +(.+)$", result.stdout, re.MULTILINE) == parts
    assert f"ci: all {len(parts)} parts passed" in result.stdout


@pytest.mark.parametrize(
    ("failing", "part"),
    [
        ("venv", "environment"),
        ("deepspeed-env", "environment of DeepSpeed"),
        ("test", "tests"),
        ("prove", "proofs"),
        ("deepspeed", "real DeepSpeed"),
        ("lint", "style"),
    ],
)
def test_ci_fails_where_a_part_does_and_names_it(ci, failing, part):
    result = ci(**{failing: 3})
    assert result.returncode != 0
    assert f"ci: FAILED  {part}" in result.stdout
    assert "parts passed" not in result.stdout


def test_ci_installs_a_browser_where_there_is_none(ci):
    result = ci(**{"apt-get": 0})
    assert result.returncode == 0, result.stdout + result.stderr
    assert "asked apt-get install" in result.stdout


def test_ci_fails_where_no_browser_can_be_had(ci):
    result = ci(**{"apt-get": 100})
    assert result.returncode != 0
    assert "ci: FAILED  browser" in result.stdout
