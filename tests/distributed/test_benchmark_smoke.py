"""The benchmark on the tiny model: which peers run, what the report says of each, and equal losses. No times."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from support.paths import ROOT

DEEPSPEED = "TPINIT_DEEPSPEED_PYTHON"
OWN = {"unsharded", "tpinit", "torch", "torch-sequence"}


def command(*arguments):
    return [sys.executable, "-m", "benchmarks", *map(str, arguments)]


def environment(folder):
    return {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "TMPDIR": str(folder)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "tmp").mkdir()
    shared = set(os.listdir("/dev/shm"))
    names = {"--json": "b.json", "--document": "b.md", "--plot": "b.svg"}
    where = [part for option, name in names.items() for part in (option, folder / name)]
    done = subprocess.run(
        command("--smoke", "--steps", 2, *where),
        env=environment(folder / "tmp"),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list((folder / "tmp").glob("tpinit-bench-*"))
    # Others use /dev/shm at the same time: what stays is looked at by the names that gloo and DeepSpeed give.
    assert not [name for name in set(os.listdir("/dev/shm")) - shared if "gloo" in name or "allreduce" in name]
    return folder, done.stdout


@pytest.fixture(scope="module")
def peers(run):
    report = json.loads((run[0] / "b.json").read_text())
    (size,) = report["sizes"]
    assert size["name"] == "tiny"
    return {peer["peer"]: peer for peer in size["peers"]}


def test_everybody_is_listed_and_runs_or_says_why_not(peers):
    wants = {"deepspeed", "deepspeed-vocab", "transformers"}
    assert set(peers) == OWN | wants
    for name in OWN:
        assert peers[name]["runs"], peers[name]["reason"]
    for name in wants:
        assert peers[name]["runs"] != bool(peers[name]["reason"])


def test_the_settings_of_the_allocator_are_those_of_the_environment(run):
    recorded = json.loads((run[0] / "b.json").read_text())["conditions"]["allocator"]
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    assert recorded == {name: os.environ.get(name) for name in names}


def test_losses_agree_with_the_unsharded_model(peers):
    right = peers["unsharded"]["losses"]
    assert len(right) == 5
    assert right[0] - right[4] > 0.1  # it learns, so that the gradients are part of what is compared
    for peer in peers.values():
        if peer["runs"]:
            assert not peer["wrong"]
            assert peer["losses"] == pytest.approx(right, rel=1e-4)


def test_every_number_is_there(peers):
    for name, peer in peers.items():
        if not peer["runs"]:
            continue
        assert [len(block) for block in peer["step_seconds_by_rotation"]] == [8]
        assert peer["load_seconds"]
        assert peer["load_peak"]["tensors"] > 0
        assert peer["load_peak"]["resident_growth_read"] >= peer["load_peak"]["resident_growth"]
        step = peer["step"]
        assert step["peak"]["tensors"] > 4 * 107_000  # the parameters at least, or half and their two moments
        assert (step["collectives"] == 0) == (name == "unsharded")
        assert (step["sent_bytes"] == 0) == (name == "unsharded")
        assert step["collectives"] == sum(step["by_kind"].values())
        (state,) = peer["states"]
        assert ("save" in state) == ("restore" in state) == name.startswith(("tpinit", "torch", "deepspeed"))
        assert ("export" in state) == (name in ("tpinit", "transformers"))
        if "save" in state:
            assert state["restored"]
            assert state["save_bytes"] > 3 * 4 * 107_000  # parameters and their two moments
            assert state["save_growth"]["tensors"] < 400_000  # less than one rank's part


def test_collectives_of_a_known_plan_are_counted_right(peers):
    # Embedding 1; a layer 2 forward, 5 column-parallel inputs backward; head's input 1; the loss 3. Two layers.
    assert peers["torch"]["step"]["by_kind"] == {"all-reduce": 1 + 2 * 7 + 1 + 3}
    # [2, 32, 64] floats sixteen times, and three of a number a token, over two ranks: as much as the tensors hold.
    activations, numbers = 16 * 2 * 32 * 64 * 4, 3 * 2 * 31 * 4
    assert peers["torch"]["step"]["sent_bytes"] == pytest.approx(activations + numbers, abs=100)


def test_the_page_and_the_plot(run):
    folder, stdout = run
    page = (folder / "b.md").read_text()
    assert "Written by `make bench with --steps 2 --smoke`" in page
    assert "![" in page
    assert "](b.svg)" in page
    root = ElementTree.parse(folder / "b.svg").getroot()
    assert root.tag.endswith("svg")
    assert "prefers-color-scheme: dark" in (folder / "b.svg").read_text()
    for text in (stdout, page, (folder / "b.json").read_text()):
        assert not re.search(r"/(home|tmp|root|work|usr)/", text)
        assert os.uname().nodename not in text.split()


@pytest.mark.parametrize("last", [5.4 * 1.0002, math.nan, math.inf])
def test_a_peer_with_other_losses_is_marked(monkeypatch, last):
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    from benchmarks import campaign, chart, report, roster, sizes

    seen = {"collectives": 1, "by_kind": {"all-reduce": 1}, "alone": 0, "sent_bytes": 8, "largest_bytes": 8, "peak": {}}
    right = [5.5, 5.5, 5.4]
    rows = [
        campaign.PeerMeasurement(
            peer, losses=losses, off=campaign._off(losses, right), blocks=[[0.1, 0.2]], inspected=seen
        )
        for peer, losses in zip(roster.PEERS, (right, right, [5.5, 5.5, last]), strict=False)
    ]
    assert [row.wrong for row in rows] == [False, False, True]
    result = campaign.BenchmarkRun([campaign.SizeMeasurement(sizes.TINY, rows)], {"torch": "2"}, "gloo", 2, 2, 1)
    lines = report.table(result).splitlines()
    assert [line.split("  ")[0] for line in lines if "WRONG by" in line] == [rows[2].peer.label]
    assert "best peer" not in report.summary(result.sizes[0])
    assert chart.draw(result).count("WRONG") == 1
    written = json.loads(json.dumps(report.as_json(result), allow_nan=False))
    assert [peer["wrong"] for peer in written["sizes"][0]["peers"]] == [False, False, True]


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "glibc's allocator with its defaults"), ("9", "glibc's allocator with MALLOC_TRIM_THRESHOLD_=9")],
)
def test_a_run_says_how_the_allocator_was_set(monkeypatch, value, said):
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    from benchmarks import campaign, report

    allocator = {"MALLOC_TRIM_THRESHOLD_": value, "MALLOC_MMAP_THRESHOLD_": None, "GLIBC_TUNABLES": None}
    result = campaign.BenchmarkRun([], {"torch": "2"}, "gloo", 2, 2, 1, allocator)
    assert said in report.conditions(result)
    assert said in report.page(result, "make bench", "")
    assert report.as_json(result)["conditions"]["allocator"] == allocator


@pytest.mark.skipif(not os.environ.get(DEEPSPEED), reason=f"{DEEPSPEED} names no Python with DeepSpeed")
def test_deepspeed_takes_part(peers):
    assert peers["deepspeed"]["runs"], peers["deepspeed"]["reason"]
    assert peers["deepspeed-vocab"]["runs"], peers["deepspeed-vocab"]["reason"]
    # Seven a layer, the head's input, and one gather of the logits.
    assert peers["deepspeed"]["step"]["by_kind"] == {"all-gather": 1, "all-reduce": 2 * 7 + 1}


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_run_that_is_ended(tmp_path, sent):
    run = subprocess.Popen(
        command("--smoke", "--only", "tpinit"),
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "starting" in run.stderr.readline()
    assert "loading" in run.stderr.readline()  # by now every rank has been heard
    assert ranks_below(tmp_path)
    run.send_signal(sent)
    run.wait(timeout=60)
    run.stderr.close()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (ranks_below(tmp_path) or list(tmp_path.iterdir())):
        time.sleep(0.05)
    assert not ranks_below(tmp_path)
    assert not list(tmp_path.iterdir())


def ranks_below(folder):
    """The processes that work for a run whose files lie in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "benchmarks.rank" in words and str(folder) in words:
            found.append(path.parent.name)
    return found
