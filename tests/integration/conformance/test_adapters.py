"""Adapters: whatever an implementation does, the kit gets one answer, in time, and is fit for the next case."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from tpinit.conformance.adapters import AdapterError, as_adapter, opener, resolve_object
from tpinit.conformance.adapters.inprocess import CallableAdapter, plain
from tpinit.conformance.adapters.process import ProcessAdapter
from tpinit.conformance.adapters.ranks import RanksAdapter, layout
from tpinit.conformance.protocol import (
    Broken,
    Crashed,
    Errored,
    Garbage,
    KitError,
    Result,
    Skip,
    Skipped,
    TimedOut,
)
from tpinit.conformance.report import CaseStatus
from tpinit.conformance.runner import RunOptions, conform
from tpinit.conformance.vectors import load
from tpinit.spec.vocabulary import DType

SMOKE = load(smoke=True)
CASE = next(vector for vector in SMOKE if vector.row == 7).input
RIGHT = {"outcome": "init_from_config"}

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
        ((sys.executable, "-S", "-c", "print('hello')"), "not a line of JSON"),
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


# --- in this process -----------------------------------------------------------------------------------


def asked(answer, timeout=20.0):
    return CallableAdapter(answer).run(CASE, timeout)


def raising(error):
    def answer(case):
        raise error

    return answer


def test_a_callable_is_judged_by_what_it_returns_or_raises():
    assert asked(lambda case: RIGHT) == Result(RIGHT)
    assert asked(lambda case: {**RIGHT, "dtype": {"value": DType.BF16}}).answer["dtype"]["value"] == "bf16"
    assert asked(raising(Skip("too big"))) == Skipped("too big")
    assert asked(raising(ValueError("no"))) == Errored("ValueError: no")
    assert isinstance(asked(raising(SystemExit(3))), Crashed)
    assert isinstance(asked(lambda case: None), Garbage)
    assert isinstance(asked(lambda case: {**RIGHT, "observed": {"model": object()}}), Garbage)
    with pytest.raises(KeyboardInterrupt):
        asked(raising(KeyboardInterrupt()))


def test_a_callable_that_never_returns_is_interrupted():
    def stubborn(case):
        while True:
            with contextlib.suppress(Exception):
                time.sleep(10)

    assert asked(stubborn, 0.1) == TimedOut("no answer in 0.1 s")
    assert asked(lambda case: RIGHT) == Result(RIGHT)


def test_in_another_thread_there_is_no_limit_and_no_harm():
    answers = []
    thread = threading.Thread(target=lambda: answers.append(asked(lambda case: RIGHT)))
    thread.start()
    thread.join()
    assert answers == [Result(RIGHT)]


def test_a_callable_gets_a_copy_and_what_it_returns_is_copied():
    before = json.dumps(CASE)
    kept = {"outcome": "error", "violations": []}

    def answer(case):
        case["groups"]["g9"] = 1
        kept["violations"] = [*kept["violations"], "SIZE_MISSING"][:1]
        return kept

    adapter = CallableAdapter(answer)
    first = adapter.run(CASE, 20)
    kept["violations"].append("SIZE_INVALID")
    assert first.answer["violations"] == ["SIZE_MISSING"]
    assert first.observed == {"input_changed": True}
    assert json.dumps(CASE) == before


def test_plain_data_is_copied_whole():
    value = {"a": [1, (2.5, None)], "b": {"c": DType.FP16, "d": True}}
    assert plain(value) == {"a": [1, [2.5, None]], "b": {"c": "fp16", "d": True}}
    assert type(plain(DType.FP16)) is str


# --- worlds of ranks -----------------------------------------------------------------------------------

WORLDS = (sys.executable, "-m", "tpinit.conformance.server", "tpinit.conformance.miniatures.worlds:always_right")


def test_groups_are_given_ranks_that_tile_the_world():
    assert layout({"world_size": 4, "groups": {"g1": 2, "g2": 4}}) == {
        "g1": ((0, 1), (2, 3)),
        "g2": ((0, 1, 2, 3),),
    }
    with pytest.raises(Skip, match="g1"):
        layout({"world_size": 4, "groups": {"g1": 3}})


def test_each_size_of_world_is_made_once_and_every_rank_answers():
    adapter = RanksAdapter(WORLDS, max_world=4, max_processes=6)
    case = {"call": None, "section": None, "precision": None, "mpu": {"tp_group": "g1"}, "mesh": None}
    try:
        started(adapter)
        for _ in range(2):
            answer = adapter.run({"world_size": 2, "groups": {"g1": 2}, **case}, 30)
            assert answer.answer["outcome"] == "no_autotp"
        section = {"autotp_size": 2, "tp_size": None, "dtype": None, "tp_group": "g1"}
        answer = adapter.run({"world_size": 4, "groups": {"g1": 2}, **case, "section": section}, 30)
        assert answer.answer["outcome"] == "init_from_config"
        assert answer.observed == {"ranks": [{"ranks": ranks} for ranks in ([0, 1], [0, 1], [2, 3], [2, 3])]}
        assert adapter.starts == 3  # the third made room for itself: the world of one rank is gone
        assert isinstance(adapter.run({"world_size": 8, "groups": {"g1": 2}, **case}, 30), Skipped)
        assert isinstance(adapter.run({"world_size": 4, "groups": {"g1": 3}, **case}, 30), Skipped)
    finally:
        adapter.stop()


# --- what is never told --------------------------------------------------------------------------------

SPY = """
import json, os, sys
log = open(sys.argv[1], "a")
log.write(json.dumps({"argv": sys.argv, "env": dict(os.environ), "cwd": os.listdir(".")}) + "\\n")
for line in sys.stdin:
    log.write(line); log.flush()
    request = json.loads(line)
    if request["cmd"] == "start":
        print(json.dumps({"version": 1, "implementation": {"name": "spy", "version": "1", "language": "X"},
                          "dialects": ["documented"]}), flush=True)
    elif request["cmd"] == "dialect":
        print(json.dumps({"ok": request["dialect"] == "documented"}), flush=True)
    elif request["cmd"] == "run":
        print(json.dumps({"seq": request["seq"], "skipped": True, "reason": "spying"}), flush=True)
"""


def expected_words():
    """Whatever of a vector is not its input: ids, codes, clauses' words, sources and outcomes."""
    words = {"expected", "violations", "outcome", "source", "clauses", "effect", "smoke"}
    for vector in SMOKE:
        words |= {vector.id, vector.expected["outcome"], vector.why["flag"], *vector.expected["violations"]}
        words |= {vector.expected[name]["source"] for name in ("tp_size", "dtype", "tp_group")} - {None}
    return words - {"error", "precision"}  # the first is in many an environment, the second is an input


def test_a_spy_sees_nothing_of_what_is_expected(tmp_path, monkeypatch):
    script, log = tmp_path / "spy.py", tmp_path / "log"
    script.write_text(SPY)
    monkeypatch.setenv("PYTEST_CURRENT_TEST", f"tpinit::{SMOKE[0].id} (call)")
    monkeypatch.chdir(tmp_path)
    run = opener(f"cmd: {shlex.join([sys.executable, '-S', str(script), str(log)])}")
    report = conform(run, SMOKE)
    assert {case.verdict for case in report.cases} == {CaseStatus.SKIPPED}
    heard = log.read_text()
    assert heard.count('"cmd":"run"') == 2 * len(SMOKE)
    for vector in SMOKE:
        assert json.dumps(vector.input["groups"], separators=(",", ":")) in heard
    assert [word for word in expected_words() if word in heard] == []
    # The control: the search does find what a kit that forgot itself would send.
    leaky = heard + json.dumps(SMOKE[1].to_json())
    assert SMOKE[1].id in [word for word in expected_words() if word in leaky]


def test_a_spy_in_this_process_sees_the_input_alone():
    seen = []
    adapter = CallableAdapter(lambda *args, **kwargs: seen.append((args, kwargs)) or RIGHT)
    conform(lambda: adapter, SMOKE, RunOptions(passes=1))
    assert seen == [((dict(vector.input),), {}) for vector in SMOKE]


# --- how an implementation is named --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelled", "word"),
    [
        ("no-such", "reference"),
        ("java: x", "Legal"),
        ("cmd:", "has no command"),
        ("cmd: 'open", "is not a command"),
        ("py: json", "PKG:OBJECT"),
        ("py: no_such_module_at_all:adapter", "no such module"),
        ("py: json:no_such", "has no 'no_such'"),
        ("py: json:__name__", "neither an adapter"),
    ],
)
def test_a_name_that_names_nothing_is_told(spelled, word):
    with pytest.raises(AdapterError, match=word):
        opener(spelled)


def test_a_module_that_can_not_be_imported_is_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wants_a_library.py").write_text("import no_such_library_at_all")
    (tmp_path / "raises_when_imported.py").write_text("raise OSError('no disk')")
    with pytest.raises(AdapterError, match="it needs no_such_library_at_all"):
        resolve_object("wants_a_library:adapter")
    with pytest.raises(AdapterError, match="no disk"):
        resolve_object("raises_when_imported:adapter")


def test_an_adapter_may_be_an_object_a_class_or_a_function_that_makes_one():
    class Mine:
        def start(self): ...

        def dialect(self, name): ...

        def run(self, case, timeout): ...

        def stop(self): ...

    mine = Mine()
    assert as_adapter(mine, "x") is mine
    assert isinstance(as_adapter(Mine, "x"), Mine)
    assert as_adapter(lambda: mine, "x") is mine
    assert isinstance(as_adapter(lambda case: RIGHT, "x"), CallableAdapter)


def test_what_a_served_implementation_prints_is_not_an_answer(tmp_path):
    (tmp_path / "chatty.py").write_text(
        "import os\nprint('loading')\ndef adapter(case):\n"
        "    print('thinking')\n    os.system('echo in a shell')\n    return {'outcome': 'error'}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "tpinit.conformance.server", "chatty:adapter"],
        input=b'{"cmd":"start","version":1}\n{"cmd":"run","seq":1,"case":' + json.dumps(CASE).encode() + b"}\n"
        b'{"cmd":"run","seq":2}\n{"cmd":"stop"}\n',
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    start, answer, malformed = map(json.loads, done.stdout.splitlines())
    assert start["implementation"]["name"] == "adapter"
    assert answer == {"seq": 1, "result": {"outcome": "error"}}
    assert malformed["seq"] == 2
    assert "'case' is missing" in malformed["message"]
    assert b"thinking" in done.stderr
    assert done.returncode == 0
