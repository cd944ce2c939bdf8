"""The adapter of implementations in other processes: whatever they do, it answers in time and is ready for the next."""

import contextlib
import sys
import textwrap
import time

import pytest
from tpinit.conformance.adapters.process import ProcessAdapter
from tpinit.conformance.protocol import (
    Broken,
    Crashed,
    Garbage,
    KitError,
    Result,
    TimedOut,
)
from tpinit.conformance.report import CaseStatus
from tpinit.conformance.runner import RunOptions, conform
from tpinit.conformance.vectors import load

SMOKE = load(smoke=True)
CASE = next(vector for vector in SMOKE if vector.row == 7).input


# A server in a few lines of its own; `body` answers the case `n` (from 1) of this process with `say`.
SERVER = """
import json, os, sys, time
def say(text):
    sys.stdout.write(text + "\\n"); sys.stdout.flush()
def right():
    say(json.dumps({"seq": request["seq"], "result": {"outcome": "error"}}))
n = 0
for line in sys.stdin:
    request = json.loads(line)
    if request["cmd"] == "start":
        say(json.dumps({"version": 1, "implementation": {"name": "x", "version": "1", "language": "X"},
                        "dialects": ["documented"]}))
    elif request["cmd"] == "dialect":
        say(json.dumps({"ok": request["dialect"] == "documented"}))
    elif request["cmd"] == "stop":
        break
    else:
        n += 1
        BODY
"""


@pytest.fixture
def adapter(tmp_path):
    """A maker of process adapters for a body; all are stopped at the end."""
    made = []

    def make(body, server=SERVER, **options):
        path = tmp_path / f"server{len(made)}.py"
        path.write_text(server.replace("BODY", textwrap.indent(body, " " * 8).strip()))
        made.append(ProcessAdapter((sys.executable, "-S", str(path)), **options))
        return made[-1]

    yield make
    for one in made:
        with contextlib.suppress(Broken):
            one.stop()


def started(one):
    who = one.start()
    assert not one.dialect("nonsense")
    assert one.dialect("documented")
    return who


FAULTS = [
    ("os._exit(3)", Crashed, "exit code 3"),
    ("os.kill(os.getpid(), 9)", Crashed, "signal SIGKILL"),
    ("sys.stderr.write('why it ended'); sys.stderr.flush(); os._exit(1)", Crashed, "exit code 1"),
    ("time.sleep(60)", TimedOut, "no answer in 0.4 s"),
    ("sys.stdout.write('{'); sys.stdout.flush(); time.sleep(60)", TimedOut, "no answer in 0.4 s"),
    ("os.close(1); time.sleep(60)", Crashed, "it closed its stdout"),
    ("say('hello')", Garbage, "not a line of JSON"),
    ("sys.stdout.buffer.write(b'\\xff\\xfe\\n'); sys.stdout.flush()", Garbage, "not a line of JSON"),
    ("say('[' * 100000)", Garbage, "not a line of JSON"),
    ("say('x' * (3 << 20))", Garbage, "more than 1048576 bytes"),
    ("say(json.dumps({'seq': 99, 'result': {'outcome': 'error'}}))", Garbage, "it answers case 99"),
    ("say(json.dumps({'seq': request['seq'], 'result': {'outcome': 'error'}}) + '\\n{}')", Garbage, "more than one"),
]


@pytest.mark.parametrize(("body", "kind", "word"), FAULTS)
def test_after_any_fault_the_next_case_is_answered(adapter, body, kind, word):
    # The first case of the first process alone is answered wrongly: what the next process does is right.
    flag = "once = request['seq'] == 1"
    one = adapter(f"{flag}\nif once:\n    {body}\nelse:\n    right()")
    started(one)
    begun = time.monotonic()
    answer = one.run(CASE, 0.4 if kind is TimedOut else 20)
    assert isinstance(answer, kind)
    assert word in answer.message
    assert time.monotonic() - begun < 15
    assert one.run(CASE, 20) == Result({"outcome": "error"})
    assert one.starts == 2
    if "why it ended" in body:
        assert answer.detail == "why it ended"


def test_a_child_of_the_implementation_ends_with_it(adapter, tmp_path):
    note = tmp_path / "pid"
    child = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(300)"
    body = f"import subprocess; subprocess.Popen([sys.executable, '-S', '-c', {child!r}]); time.sleep(1); right()"
    one = adapter(body)
    started(one)
    assert isinstance(one.run(CASE, 20), Result)
    one.stop()
    pid = int(note.read_text())
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_process_for_all_cases_or_one_for_each(adapter):
    body = "say(json.dumps({'seq': request['seq'], 'result': {'outcome': 'error', 'row': n}}))"
    warm, fresh = adapter(body), adapter(body, fresh=True)
    assert not started(warm).isolated
    assert started(fresh).isolated
    assert [warm.run(CASE, 20).answer["row"] for _ in range(3)] == [1, 2, 3]
    assert [fresh.run(CASE, 20).answer["row"] for _ in range(3)] == [1, 1, 1]
    assert (warm.starts, fresh.starts) == (1, 3)


def test_who_says_more_than_asked_is_broken(adapter):
    one = adapter("right(); time.sleep(0.2); say('{}')")
    started(one)
    assert isinstance(one.run(CASE, 20), Result)
    time.sleep(0.5)
    assert isinstance(one.run(CASE, 20), Result)
    with pytest.raises(Broken, match="it writes more than its replies"):
        one.stop()


def test_a_kit_that_asks_nonsense_is_the_kit_s_fault(adapter):
    one = adapter("right()")
    started(one)
    with pytest.raises(KitError, match="world_size"):
        one.run({**CASE, "world_size": 0}, 20)


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (("/no/such/program",), "can't be started"),
        ((sys.executable, "-S", "-c", "import sys; sys.exit('not today')"), "not today"),
        ((sys.executable, "-S", "-c", "input(); print('hello')"), "not a line of JSON"),
        ((sys.executable, "-S", "-c", "input(); print('{}')"), "'version' is missing"),
    ],
)
def test_what_does_not_start_is_broken(command, word):
    with pytest.raises(Broken, match=word):
        ProcessAdapter(command).start()
    report = conform(lambda: ProcessAdapter(command), SMOKE, RunOptions(spelled="it"))
    assert word.split("'")[-1] in report.broken
    assert {case.verdict for case in report.cases} == {CaseStatus.NOT_RUN}


def test_a_hopeless_implementation_is_given_up(adapter):
    report = conform(lambda: adapter("os._exit(1)"), SMOKE, RunOptions(give_up=3))
    verdicts = [case.verdict for case in report.cases]
    assert verdicts == [CaseStatus.CRASHED] * 3 + [CaseStatus.NOT_RUN] * (len(SMOKE) - 3)


def test_jobs_share_the_vectors_and_keep_their_order(adapter):
    answers = "say(json.dumps({'seq': request['seq'], 'result': {'outcome': 'error'}}))"
    report = conform(lambda: adapter(answers), SMOKE, RunOptions(jobs=3))
    assert [case.id for case in report.cases] == [vector.id for vector in SMOKE]
    right = [case.verdict is CaseStatus.AGREED for case in report.cases]
    assert right == [vector.expected["outcome"] == "error" for vector in SMOKE]
