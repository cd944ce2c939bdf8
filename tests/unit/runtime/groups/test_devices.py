"""Which device a rank takes, and why: from the model, the mesh, the group and the launcher. The GPUs are fake."""

from __future__ import annotations

import socket
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from tpinit.reference.errors import TpinitError
from tpinit.runtime.errors import AgreementError, DeviceError
from tpinit.runtime.groups import device_check, world
from tpinit.runtime.groups.agreement import RankReport
from tpinit.runtime.groups.device_check import device_step, use_device
from tpinit.runtime.groups.devices import (
    DeviceChoice,
    autocast_dtype,
    choose_device,
    initial_device,
    message_device,
    peer_device,
)
from tpinit.runtime.groups.protocol import run
from tpinit.runtime.internals.torch_private import timeout_of

from support.fake_cuda import FakeCuda, model_on, served_by

LAUNCHERS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID")


@pytest.fixture(autouse=True)
def world_of_one(monkeypatch):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


class Mesh(torch.distributed.device_mesh.DeviceMesh):
    """Only what the choice reads: a mesh of GPUs can't be made here."""

    def __init__(self, kind):
        self._kind = kind

    device_type = property(lambda self: self._kind)


# --- which kind of device ---------------------------------------------------------------------------------


@pytest.mark.parametrize("configuration", ["cuda:nccl", "cpu:gloo,cuda:nccl"])
def test_a_group_made_without_a_backend_on_a_gpu_host_trains_on_the_gpu(monkeypatch, configuration):
    FakeCuda(2).install(monkeypatch)
    served_by(monkeypatch, configuration)
    choice = choose_device(model_on("cpu"))
    assert choice.device == torch.device("cuda", 0)
    assert choice.backend == "nccl"
    assert "nccl" in choice.reason
    assert "LOCAL_RANK" in choice.reason


def test_the_backend_of_a_group_without_one_is_read_from_its_configuration():
    dist.destroy_process_group()
    dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
    assert dist.get_backend() == "undefined"  # what a look at the name would see
    assert choose_device(model_on("cpu")).device == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_a_model_on_a_gpu_stays_there_with_gloo_and_the_choice_warns(monkeypatch, device):
    FakeCuda(2).install(monkeypatch)
    served_by(monkeypatch, "cpu:gloo,cuda:gloo")
    monkeypatch.setenv("LOCAL_RANK", "1")
    choice = choose_device(model_on(device, "cpu"))
    assert choice.device == torch.device(device)
    assert "slow" in choice.warning


def test_a_model_on_a_gpu_and_a_group_for_the_cpu_only_are_refused(monkeypatch):
    FakeCuda(1).install(monkeypatch)
    served_by(monkeypatch, "cpu:gloo")
    with pytest.raises(DeviceError, match=r"the model is on cuda:0.*sends only cpu \(gloo\).*cpu:gloo,cuda:nccl"):
        choose_device(model_on("cuda:0"))


def test_a_model_on_the_cpu_with_a_gloo_group_stays_and_a_visible_gpu_is_named(monkeypatch):
    FakeCuda(3).install(monkeypatch)
    served_by(monkeypatch, "cpu:gloo,cuda:gloo")
    choice = choose_device(model_on("cpu"))
    assert choice.device == torch.device("cpu")
    assert "3 cuda device(s) are visible, and training runs on the CPU" in choice.warning


def test_without_an_accelerator_the_cpu_needs_no_warning(monkeypatch):
    FakeCuda(0).install(monkeypatch)
    assert choose_device(model_on("cpu")).warning is None


def test_the_mesh_names_the_kind(monkeypatch):
    FakeCuda(1).install(monkeypatch)
    served_by(monkeypatch, "cpu:gloo,cuda:gloo")
    assert choose_device(model_on("cpu"), Mesh("cuda")).device.type == "cuda"
    assert choose_device(model_on("meta"), Mesh("cpu")).device.type == "cpu"
    assert choose_device(None, Mesh("cpu")).device.type == "cpu"


def test_a_mesh_that_contradicts_the_model_is_refused(monkeypatch):
    FakeCuda(1).install(monkeypatch)
    with pytest.raises(DeviceError, match=r"the model is on cuda:0, and the mesh is one of cpu devices"):
        choose_device(model_on("cuda:0"), Mesh("cpu"))


@pytest.mark.parametrize("configuration", ["cuda:nccl", "xpu:xccl"])
def test_a_group_for_devices_that_are_not_visible_is_refused(monkeypatch, configuration):
    FakeCuda(0).install(monkeypatch)
    served_by(monkeypatch, configuration)
    with pytest.raises(DeviceError, match=f"sees no {configuration[:3]}"):
        choose_device(model_on("cpu"))


def test_a_model_on_several_gpus_is_refused(monkeypatch):
    FakeCuda(2).install(monkeypatch)
    with pytest.raises(DeviceError, match=r"on cuda:0, cuda:1, and each rank trains on one device"):
        choose_device(model_on("cuda:0", "cuda:1"))


# --- which index ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "launcher", "value", "index"),
    [(4, "LOCAL_RANK", 3, 3), (1, "LOCAL_RANK", 3, 0), (4, "SLURM_LOCALID", 2, 2), (1, "SLURM_LOCALID", 5, 0)],
)
def test_the_index_is_the_local_rank_modulo_what_the_process_sees(monkeypatch, count, launcher, value, index):
    cuda = FakeCuda(count).install(monkeypatch)
    served_by(monkeypatch, "cuda:nccl")
    monkeypatch.setenv(launcher, str(value))
    choice = choose_device(model_on("cpu"))
    assert choice.device == torch.device("cuda", index)
    assert f"{launcher}={value}, {count} visible" in choice.reason
    assert cuda.selected == []  # choosing changes nothing


def agree_on_devices(model):
    """Do what `initialize` does first."""
    choice = run(device_step(lambda _: choose_device(model)))
    use_device(choice, False)
    return choice


@pytest.mark.parametrize("model", ["cpu", "cuda:0", "cuda:2"])
def test_the_callers_set_device_is_kept(monkeypatch, model):
    cuda = FakeCuda(4, current=2).install(monkeypatch)
    served_by(monkeypatch, "cuda:nccl")
    monkeypatch.setenv("LOCAL_RANK", "1")
    choice = agree_on_devices(model_on(model))
    assert choice.device == torch.device("cuda", 2)
    assert cuda.selected == []


def test_the_device_of_init_process_group_counts(monkeypatch):
    FakeCuda(4).install(monkeypatch)
    served_by(monkeypatch, "cuda:nccl")
    monkeypatch.setenv("LOCAL_RANK", "1")
    dist.group.WORLD.bound_device_id = torch.device("cuda", 3)
    choice = choose_device(model_on("cpu"))
    assert choice.device.index == 3
    assert "device_id" in choice.reason


def test_a_model_on_torchs_default_gpu_moves_to_the_ranks_own(monkeypatch):
    cuda = FakeCuda(2).install(monkeypatch)
    served_by(monkeypatch, "cuda:nccl")
    monkeypatch.setenv("LOCAL_RANK", "1")
    choice = agree_on_devices(model_on("cuda:0"))
    assert choice.device.index == 1
    assert cuda.selected == [1]


def test_a_model_and_a_set_device_that_differ_are_refused(monkeypatch):
    FakeCuda(4, current=2).install(monkeypatch)
    served_by(monkeypatch, "cuda:nccl")
    with pytest.raises(DeviceError, match=r"set_device chose cuda:2, and the model is on cuda:1"):
        choose_device(model_on("cuda:1"))


def test_torch_distributed_is_started_on_the_ranks_gpu_if_its_backend_is_built_in(monkeypatch):
    FakeCuda(2).install(monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert initial_device(None, 1) == torch.device("cpu")  # this build of torch has no nccl
    monkeypatch.setattr(dist, "is_backend_available", lambda name: name == "nccl")
    assert initial_device(None, 1) == torch.device("cuda", 1)


# --- where messages go ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configuration", "device"),
    [("cpu:gloo", "cpu"), ("cpu:gloo,cuda:nccl", "cpu"), ("cuda:nccl", "cuda:1"), ("cpu:fake,cuda:fake", "cpu")],
)
def test_messages_go_over_the_cpu_if_the_group_serves_it(monkeypatch, configuration, device):
    FakeCuda(2, current=1).install(monkeypatch)
    served_by(monkeypatch, configuration)
    assert message_device() == torch.device(device)


@pytest.mark.parametrize(
    ("configuration", "device"),
    [("cpu:gloo,cuda:gloo", "cpu"), ("cpu:gloo,cuda:nccl", "cuda:0"), ("cuda:nccl", "cuda:0")],
)
def test_gloo_sends_from_rank_to_rank_in_host_memory(monkeypatch, configuration, device):
    served_by(monkeypatch, configuration)
    assert peer_device(None, torch.device("cuda", 0)) == torch.device(device)
    assert peer_device(None, torch.device("cpu")) == torch.device("cpu")


# --- what the ranks agree on ------------------------------------------------------------------------------


def answers(*found):
    """What each rank published, with what a rank on a GPU says by default."""
    return [
        RankReport(
            replica={"kind": "cuda", "identity": f"GPU-{rank}", "choice": f"cuda:{rank}"} | one, error=one.get("error")
        )
        for rank, one in enumerate(found)
    ]


def test_two_processes_on_one_gpu_are_refused_before_nccl_sees_them():
    device_check._check_devices(answers({}, {}))
    with pytest.raises(DeviceError, match=r"(?s)ranks 0, 1 chose the same device.*LOCAL_RANK"):
        device_check._check_devices(answers({}, {"identity": "GPU-0"}))


def test_ranks_on_different_kinds_of_devices_are_refused():
    with pytest.raises(DeviceError, match=r"(?s)different kinds.*rank 1: cpu"):
        device_check._check_devices(answers({}, {"kind": "cpu", "identity": "", "choice": "cpu"}))


def test_a_rank_without_a_device_stops_all_ranks():
    with pytest.raises(AgreementError, match=r"(?s)rank 1: DeviceError: no GPU"):
        device_check._check_devices(answers({}, {"error": "DeviceError: no GPU"}))
    with pytest.raises(AgreementError, match=r"(?s)rank 0: x.*rank 1: y"):
        device_check._check_devices(answers({"error": "x"}, {"error": "y"}))
    device_check._check_devices(answers({"error": "x"}, {"error": "x"}))  # each rank raises its own


def test_a_rank_that_does_not_come_is_named(monkeypatch):
    store = dist.HashStore()
    store.set_timeout(timedelta(milliseconds=50))
    monkeypatch.setattr(device_check, "default_store", lambda: store)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    with pytest.raises(AgreementError, match="rank 1 did not come to initialize"):
        device_check._exchange(RankReport())


def test_a_backend_that_cannot_send_the_tensors_of_the_device_is_refused(monkeypatch):
    choice = DeviceChoice(torch.device("cpu"), "served", "gloo")
    device_check._try_collectives(choice, True)

    def refuse(*_, **__):
        raise RuntimeError("ProcessGroupGloo::allgather: unsupported device type\nsecond line")

    monkeypatch.setattr(dist, "all_gather", refuse)
    with pytest.raises(DeviceError, match=r"gloo can't send cpu tensors here: all_gather failed \(.*device type\);"):
        device_check._try_collectives(choice, False)


def test_a_trial_runs_where_the_backend_is_not_the_accelerators_own(monkeypatch):
    tried = []
    monkeypatch.setattr(device_check, "_try_collectives", lambda choice, sequence: tried.append(choice.backend))
    FakeCuda(1).install(monkeypatch)
    for configuration in ("cpu:gloo,cuda:gloo", "cpu:gloo,cuda:nccl", "cpu:fake,cuda:fake"):
        served_by(monkeypatch, configuration)
        agree_on_devices(model_on("cuda:0"))
    assert tried == ["gloo"]


# --- the world that initialize starts ---------------------------------------------------------------------


def launched(monkeypatch):
    """The environment that torchrun sets for a world of one."""
    dist.destroy_process_group()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))


def test_the_world_has_the_time_out_and_ends_only_if_it_was_started_here(monkeypatch):
    world.end()
    assert dist.is_initialized()  # the world of this test's fixture is not ours
    launched(monkeypatch)
    world.start(29500, None, timedelta(seconds=43))
    assert timeout_of(dist.group.WORLD, "cpu") == timedelta(seconds=43)
    assert world.started_here()
    world.end()
    assert not dist.is_initialized()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert not world.started_here()


def test_a_world_on_a_gpu_is_started_eagerly_with_its_device(monkeypatch):
    launched(monkeypatch)
    cuda = FakeCuda(2).install(monkeypatch)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(dist, "is_backend_available", lambda name: name in ("nccl", "gloo"))
    real, seen = dist.init_process_group, {}

    def record(backend, **options):
        seen.update(backend=backend, **options)
        real("gloo", timeout=options["timeout"])

    monkeypatch.setattr(dist, "init_process_group", record)
    world.start(29500, None, timedelta(seconds=43))
    assert seen == {
        "backend": "cpu:gloo,cuda:nccl",
        "device_id": torch.device("cuda", 1),
        "timeout": timedelta(seconds=43),
    }
    assert cuda.selected == [1]


def test_the_world_ends_at_exit_but_not_after_an_error(monkeypatch):
    ended = []
    monkeypatch.setattr(world, "end", lambda: ended.append(True))
    monkeypatch.setattr(sys, "last_value", ValueError("uncaught"), raising=False)
    world._end_at_exit()
    assert ended == []
    monkeypatch.delattr(sys, "last_value")
    world._end_at_exit()
    assert ended == [True]


@pytest.mark.parametrize("value", [0, -1, True, "60", float("inf"), float("nan"), timedelta(0)])
def test_a_time_out_that_is_no_time_is_refused(value):
    with pytest.raises(TpinitError, match="timeout is"):
        world.read_timeout(value)


def test_a_time_out_is_seconds_or_a_timedelta():
    assert world.read_timeout(None) is None
    assert world.read_timeout(1.5) == timedelta(seconds=1.5)
    assert world.read_timeout(timedelta(minutes=2)) == timedelta(minutes=2)


def test_autocast_is_off_on_a_device_that_has_none():
    with pytest.raises(RuntimeError, match="unknown device type"):  # what torch says of it
        torch.is_autocast_enabled("meta")
    assert autocast_dtype("meta") is None
    assert autocast_dtype("cpu") is None
    with torch.autocast("cpu", torch.bfloat16):
        assert autocast_dtype("cpu") is torch.bfloat16
