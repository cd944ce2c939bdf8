"""How adapters are named, what they pass on, and how worlds of ranks are started."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from tpinit.conformance.adapters import AdapterError, as_adapter, opener, resolve_object
from tpinit.conformance.adapters.inprocess import CallableAdapter
from tpinit.conformance.adapters.ranks import RanksAdapter, layout
from tpinit.conformance.protocol import (
    Skip,
    Skipped,
)
from tpinit.conformance.report import CaseStatus
from tpinit.conformance.runner import RunOptions, conform
from tpinit.conformance.vectors import load

SMOKE = load(smoke=True)
CASE = next(vector for vector in SMOKE if vector.row == 7).input
RIGHT = {"outcome": "init_from_config"}


def started(one):
    who = one.start()
    assert not one.dialect("nonsense")
    assert one.dialect("documented")
    return who


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
