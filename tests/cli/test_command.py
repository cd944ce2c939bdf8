"""The command itself: help, version, usage errors, how it ends, and what it loads."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest

COMMANDS = (
    "resolve",
    "table",
    "schema",
    "prove",
    "mutate",
    "vectors",
    "check-table",
    "conform",
    "plan",
    "verify",
    "checkpoint",
    "train",
)


@pytest.mark.parametrize("script", [False, True])
def test_version(tpinit, script):
    result = tpinit("--version", script=script)
    assert (result.returncode, result.stdout.decode(), result.stderr) == (0, f"tpinit {version('tpinit')}\n", b"")


@pytest.mark.parametrize("script", [False, True])
def test_help_names_every_command_and_shows_examples(tpinit, script):
    result = tpinit("--help", script=script)
    text = result.stdout.decode()
    assert result.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"\n    {command}\s", text)  # the summary of a long name has a line of its own
    assert "examples:" in text
    assert "exit codes:" in text
    assert max(map(len, text.splitlines())) <= 112


def test_the_help_names_no_other_command(tpinit):
    listed = re.findall(r"^    (\S+)", tpinit("--help").stdout.decode().partition("COMMAND\n")[2], re.MULTILINE)
    assert tuple(listed) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(tpinit, command):
    result = tpinit(command, "--help")
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.decode().startswith(f"usage: tpinit {command}")
    assert max(map(len, result.stdout.decode().splitlines())) <= 120


def test_no_command_shows_the_help_as_an_error(tpinit):
    result = tpinit()
    assert (result.returncode, result.stdout) == (2, b"")
    assert b"examples:" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [("tabel",), ("table", "--yaml"), ("table", "--json", "--markdown"), ("resolve", "a", "b"), ("--tabel",), ("",)],
)
def test_usage_errors(tpinit, refused, arguments):
    refused(tpinit(*arguments), "fix: see 'tpinit")


def test_options_are_never_guessed_from_their_beginning(tpinit, refused):
    refused(tpinit("resolve", "--wor", "4"), "--wor")


def test_a_closed_pipe_is_silent(tpinit):
    # The reader has gone before the command writes: what `| head -0` does.
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "tpinit.cli.main", "table"],
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")


def test_ctrl_c_is_silent(tpinit):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, "resolve", "-", "--world", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.2)  # until it waits for stdin; an earlier signal must end it in the same way
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, error) == (130, b"")


# Says when the command is loaded: an interrupt of the interpreter's own start is not ours to handle.
WAITING = """
import sys, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from tpinit.cli.main import main
import tpinit.cli.resolve
print("ready", flush=True)
sys.exit(main())
"""


def test_a_bug_never_looks_like_a_violation(tpinit):
    broken = "import sys, tpinit.cli.main as m, tpinit.cli.table as t; t._as_object = None; sys.exit(m.main())"
    result = subprocess.run([sys.executable, "-c", broken, "table", "--json"], capture_output=True, timeout=60)
    assert result.returncode == 70
    assert b"this is a bug in tpinit" in result.stderr


LOADED = """
import sys
from tpinit.cli.main import main
try:
    main()
finally:
    names = [name if name.startswith("tpinit.") else name.partition(".")[0] for name in sys.modules]
    print(*sorted(set(names)), file=sys.stderr)
"""


def loaded(*arguments):
    done = subprocess.run([sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, timeout=60)
    return set(done.stderr.splitlines()[-1].split())


HEAVY = {"torch", "transformers", "z3", "cvc5", "crosshair", "hypothesis", "pytest", "numpy"}
ROOMS = {"tpinit.runtime", "tpinit.proofs", "tpinit.conformance"}


@pytest.mark.parametrize(
    ("arguments", "others"),
    [
        (("resolve", "--tp-size", "2", "--dtype", "bf16", "--mpu", "0,1"), {"tpinit.spec.table", "hjson"}),
        (("schema",), {"tpinit.spec.table", "tpinit.cli.resolve"}),
        (("table",), {"tpinit.reference", "tpinit.cli.resolve"}),
        (("--help",), {"tpinit.reference", "tpinit.cli.resolve", "tpinit.spec"}),
        (("--version",), {"tpinit.reference", "tpinit.cli.resolve", "tpinit.spec"}),
    ],
)
def test_a_command_loads_its_own_room_only(arguments, others):
    present = loaded(*arguments)
    assert "tpinit.cli.main" in present
    assert present & (HEAVY | ROOMS | others) == set()


def test_the_control_of_the_test_above():
    assert "tpinit.spec.table" in loaded("table")
    assert {"tpinit.reference.objects", "tpinit.cli.resolve"} <= loaded("resolve")


def test_the_table_has_twelve_rows_and_fits_a_terminal(tpinit):
    text = tpinit("table").stdout.decode()
    assert [line.split()[0] for line in text.splitlines()[2:14]] == [str(number) for number in range(1, 13)]
    assert max(map(len, text.splitlines())) <= 100


def test_the_table_as_json(tpinit):
    rows = json.loads(tpinit("table", "--json").stdout)
    assert [row["row"] for row in rows] == list(range(1, 13))
    assert rows[6] == {
        "row": 7,
        "tpi": True,
        "tpg": False,
        "cfg": True,
        "mpu": False,
        "outcome": "init_from_config",
        "code": None,
        "fields_from": "config, gaps filled from the call",
        "group_from": "config group, mesh, or created",
    }
    assert [row["row"] for row in rows if row["outcome"] == "error"] == [1, 5, 10, 12]
    assert [row["code"] for row in rows if row["code"]] == [
        "NO_TP_INTENT",
        "NO_GROUP_SOURCE",
        "GROUP_AND_MPU",
        "GROUP_AND_MPU",
    ]


def test_the_table_as_markdown(tpinit):
    lines = tpinit("table", "--markdown").stdout.decode().splitlines()
    assert len(lines) == 14
    assert {line.count("|") for line in lines} == {9}


@pytest.mark.parametrize(("options", "schema"), [((), "section_schema"), (("--config",), "config_schema")])
def test_the_schema_is_the_one_of_the_reader(tpinit, options, schema):
    from tpinit.reference import schema as made

    result = tpinit("schema", *options)
    assert result.returncode == 0
    assert json.loads(result.stdout) == getattr(made, schema)()
