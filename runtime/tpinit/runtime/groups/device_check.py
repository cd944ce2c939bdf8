"""Ranks agree on their devices before the first collective of the model.

NCCL needs a GPU of its own for each process; two processes on one GPU end in an error deep inside it, or in a hang. So
with such a backend the ranks exchange their devices, and their errors, through the store of the process group, which
needs no GPU.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from tpinit.runtime.errors import AgreementError, DeviceError
from tpinit.runtime.groups.agreement import RankReport, check_reports, read_report, report_text
from tpinit.runtime.groups.devices import DeviceChoice, backends, exclusive, use
from tpinit.runtime.groups.protocol import Steps, agree
from tpinit.runtime.internals.torch_private import default_store

__all__ = ["device_identity", "device_step", "use_device"]

_log = logging.getLogger("tpinit")
_exchanges = itertools.count()  # every rank calls initialize equally often; a key is written once


def device_step(choose: Callable[[RankReport], DeviceChoice]) -> Steps[DeviceChoice]:
    """Return what `choose` returns, after all ranks have chosen devices that work together.

    Raises, on all ranks, what `choose` raises on this rank, AgreementError if it raised on another one or if a rank
    does not come, and DeviceError if the ranks chose different kinds of devices, or if two share one that a process
    must have for itself.
    """
    alone = any(exclusive(backend) for backend in backends().values())

    def described(report: RankReport) -> DeviceChoice:
        choice = choose(report)
        if alone:
            identity = device_identity(choice.device) if exclusive(choice.backend) else ""
            report.replica.update(kind=choice.device.type, identity=identity, choice=str(choice))
        else:
            report.fields["device.kind"] = choice.device.type
        return choice

    if alone:
        choice, _ = yield from agree("devices", described, _check_devices, _exchange)
    else:
        choice, _ = yield from agree("devices", described)
    return choice


def use_device(choice: DeviceChoice, sequence_parallel: bool) -> None:
    """Make a device current, and try on it what the world's backend must send. All ranks must call this.

    Raises DeviceError if the backend can't send tensors of this device (gloo with CUDA tensors of some builds).
    """
    use(choice.device)
    if choice.device.type != "cpu" and not exclusive(choice.backend) and choice.backend != "fake":
        _try_collectives(choice, sequence_parallel)
    if dist.get_rank() == 0 and choice.warning is not None:
        _log.warning("%s", choice.warning)
    _log.info("rank %d trains on %s", dist.get_rank(), choice)


def device_identity(device: torch.device) -> str:
    """Return a text that is equal for one device in two processes, whatever index they see it at."""
    if device.type == "cuda":
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        if uuid is not None:
            return str(uuid)
    return f"{socket.gethostname()} {os.environ.get('CUDA_VISIBLE_DEVICES', '')} {device}"


def _exchange(own: RankReport) -> list[RankReport]:
    """Return the reports of all ranks, in rank order, through the store. All ranks must call this."""
    store, number = default_store(), next(_exchanges)
    store.set(f"tpinit/devices/{number}/{dist.get_rank()}", report_text(own))
    return [_published(store, f"tpinit/devices/{number}/{rank}", rank) for rank in range(dist.get_world_size())]


def _published(store: Store, key: str, rank: int) -> RankReport:
    try:
        return read_report(store.get(key).decode())
    except RuntimeError as error:  # torch's DistStoreError: the time-out of the store
        raise AgreementError(
            f"rank {rank} did not come to initialize within the time-out of the process group: all ranks must "
            f"call it ({str(error).splitlines()[0]})",
            ["initialize"],
        ) from error


def _check_devices(reports: Sequence[RankReport]) -> None:
    """Raise for ranks that differ or failed, have devices of different kinds, or one device for two processes.

    If all ranks failed alike, this returns, and each raises its own error.
    """
    check_reports(reports)
    if any(report.error is not None for report in reports):
        return
    found = [report.replica for report in reports]
    shown = "\n".join(f"  rank {rank}: {one['choice']}" for rank, one in enumerate(found))
    if len({one["kind"] for one in found}) > 1:
        raise DeviceError(f"the ranks chose devices of different kinds; all must train on one kind:\n{shown}")
    holders: dict[object, list[int]] = {}
    for rank, one in enumerate(found):
        if one["identity"]:
            holders.setdefault(one["identity"], []).append(rank)
    shared = [ranks for ranks in holders.values() if len(ranks) > 1]
    if shared:
        raise DeviceError(
            f"ranks {', '.join(map(str, shared[0]))} chose the same device, and the backend needs one for each process:"
            f"\n{shown}\n  fix: start as many processes as there are devices, or tell each process its device, with "
            "LOCAL_RANK, torch.cuda.set_device or init_process_group(device_id=...)"
        )


def _try_collectives(choice: DeviceChoice, sequence_parallel: bool) -> None:
    """Raise DeviceError if the world's backend can't send tensors of the chosen device. All ranks must call this."""
    size, device = dist.get_world_size(), choice.device
    trials: list[tuple[str, Callable[[], object]]] = [
        ("all_reduce", lambda: dist.all_reduce(torch.ones(2, device=device))),
        ("all_reduce of bf16", lambda: dist.all_reduce(torch.ones(2, dtype=torch.bfloat16, device=device))),
        (
            "all_gather",
            lambda: dist.all_gather([torch.empty(2, device=device) for _ in range(size)], torch.ones(2, device=device)),
        ),
        ("broadcast", lambda: dist.broadcast(torch.ones(2, dtype=torch.uint8, device=device), 0)),
    ]
    if sequence_parallel:
        parts = [torch.ones(2, device=device) for _ in range(size)]
        trials.append(("reduce_scatter", lambda: dist.reduce_scatter(torch.empty(2, device=device), parts)))
    for name, trial in trials:
        _attempt(choice, name, trial)


def _attempt(choice: DeviceChoice, name: str, trial: Callable[[], object]) -> None:
    try:
        trial()
    except (RuntimeError, ValueError) as error:
        kind = choice.device.type
        raise DeviceError(
            f"{choice.backend} can't send {kind} tensors here: {name} failed ({str(error).splitlines()[0][:200]}); "
            f"start the process group with {dist.get_default_backend_for_device(kind)}, or move the model to the CPU"
        ) from error
