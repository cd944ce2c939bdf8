"""The ring of the last collectives: what it keeps, what another process reads of it, and the words of errors."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from tpinit.runtime.errors import CollectiveError
from tpinit.runtime.groups import flight_recorder as recording
from tpinit.runtime.groups.flight_recorder import SLOTS, FlightRecorder, map_peers, rank_histories, shown_histories
from tpinit.runtime.groups.issuing import PendingCollective, collective

OTHER = """
import json, sys, time
from tpinit.runtime.groups import flight_recorder as recording
recorder = recording.flight_recorder()
recorder.end(recorder.begin(b"all_reduce, a layer"))
recorder.begin(b"all_gather, a head")
print(json.dumps(recording.own_address()), flush=True)
time.sleep(60)
"""


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setattr(recording, "_recorder", None)
    monkeypatch.setattr(recording, "_peers", {})
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield recording.flight_recorder()
    dist.destroy_process_group()


def test_the_ring_keeps_the_last_records_in_order():
    recorder = FlightRecorder()
    assert recorder.last() == []
    first = recorder.begin(b"the first")
    assert recorder.last() == ["1 the first (not done)"]
    for number in range(2, 3 * SLOTS):
        recorder.end(recorder.begin(f"record {number}".encode()))
    recorder.end(first)  # its slot has another record: nothing may be marked there
    found = recorder.last(2 * SLOTS)
    assert len(found) == SLOTS
    assert found == [f"{number} record {number}" for number in range(2 * SLOTS, 3 * SLOTS)]
    recorder.note("the forward raised ValueError: " + "x" * 500)
    assert recorder.last(1)[0].startswith(f"{3 * SLOTS} the forward raised ValueError: xxx")


def test_a_killed_process_can_still_be_read(world):
    command = [sys.executable, "-c", OTHER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = json.loads(process.stdout.readline())
        map_peers([recording.own_address(), address], own_rank=0)
        process.send_signal(signal.SIGKILL)
        process.wait()
    world.begin(b"all_gather, a head")
    began = time.monotonic()
    text = rank_histories((0, 1))
    assert time.monotonic() - began < recording._WAIT  # it has ended: there is nothing to wait for
    assert "rank 1, whose process ended" in text
    assert text.splitlines()[-2:] == ["    1 all_reduce, a layer", "    2 all_gather, a head (not done)"]
    assert not os.path.exists(f"/proc/{address['pid']}/fd")


def test_a_ring_of_another_process_is_not_taken_for_that_of_a_rank(world):
    address = {**recording.own_address(), "token": "00"}
    map_peers([address, address, {**address, "host": "elsewhere"}, {**address, "handle": None}], own_rank=0)
    assert recording._peers == {}
    assert "rank 1 has not told them" in rank_histories((0, 1))


def test_of_many_ranks_those_that_are_behind_are_shown():
    told = {rank: [f"{100 - (rank == 40)} all_reduce, a layer"] for rank in range(64)}
    text = shown_histories(told)
    assert "rank 40\n    99 all_reduce" in text
    assert text.count("rank ") == 8
    assert text.endswith("and 56 more ranks, which are as far or further")


def test_a_collective_is_recorded_by_name_shape_and_ranks(world):
    tensor = torch.ones(2, 3)
    collective("all_reduce", "model.layers.0.mlp forward", tensor)
    pending = collective("all_reduce", "the norm", tensor, async_op=True)
    assert isinstance(pending, PendingCollective)
    assert world.last(2)[1].endswith("(not done)")
    pending.wait()
    assert world.last(2) == [
        "1 all_reduce, model.layers.0.mlp forward, [2, 3] float32, 0",
        "2 all_reduce, the norm, [2, 3] float32, 0",
    ]
    collective("all_reduce", "x" * 300 + " end", tensor)
    assert world.last(1)[0].endswith("xx end, [2, 3] float32, 0")


def test_errors_are_explained_and_those_of_the_device_pass(world, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("[/a/b/pair.cc:12] Connection closed by peer. This is typically caused by a crash. GLHF!")

    monkeypatch.setattr(dist, "all_reduce", fail)
    with pytest.raises(
        CollectiveError, match=r"all_reduce of a layer failed on rank 0.*\(Connection closed by peer\);"
    ) as caught:
        collective("all_reduce", "a layer", torch.ones(1))
    assert caught.value.ranks == (0,)
    assert "1 all_reduce, a layer, [1] float32, 0 (not done)" in str(caught.value)
    assert world.last(1) == ["2 CollectiveError: all_reduce of a layer failed"]

    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(dist, "all_reduce", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        collective("all_reduce", "a layer", torch.ones(1))


def test_a_forked_process_has_a_ring_of_its_own(world):
    world.begin(b"of the parent")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        recording.flight_recorder().begin(b"of the child")
        os.write(writing, b"1" if recording.flight_recorder().count == 1 else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b"1"
    assert world.last() == ["1 of the parent (not done)"]
