"""Jobs for the fork server: from the input of a vector to real groups, calls and a config as a user writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tpinit.conformance.protocol import Case, Skip

__all__ = [
    "BASE",
    "Partition",
    "blocks",
    "data_of",
    "job_of",
    "materialise",
    "observations",
    "orthogonal",
    "positions_of",
    "strides",
]

Partition = list[list[int]]
WORLDS = (2, 4)
# Without clipping and with one sample per rank, updates differ only by the groups that shard and average.
BASE: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 0.0}
_PRECISION: dict[str, dict[str, Any]] = {
    "bf16": {"bf16": {"enabled": True}},
    "fp16": {"fp16": {"enabled": True, "loss_scale": 1}},
}


def blocks(world: int, size: int) -> Partition:
    """Return contiguous groups: [0, 1], [2, 3]."""
    return [list(range(first, first + size)) for first in range(0, world, size)]


def strides(world: int, size: int) -> Partition:
    """Return strided groups: [0, 2], [1, 3]."""
    return [list(range(first, world, world // size)) for first in range(world // size)]


def orthogonal(partition: Partition) -> Partition:
    """Return the groups with one rank of each given group: the DP groups that belong to these TP groups."""
    return [sorted(ranks) for ranks in zip(*partition, strict=True)]


def materialise(case: Case) -> dict[str, Partition]:
    """Return the ranks of every handle: contiguous groups (the mesh's first), strided for a second one of a size.

    Raises Skip for a group whose size does not divide the world size.
    """
    world, sizes = case["world_size"], case["groups"]
    partitions: dict[str, Partition] = {}
    seen: dict[int, int] = {}
    for handle in sorted(sizes, key=lambda handle: handle != case["mesh"]):
        size = sizes[handle]
        if size > world or world % size:
            raise Skip(f"groups of {size} ranks ({handle}) do not tile a world of {world}")
        partitions[handle] = strides(world, size) if seen.get(size, 0) % 2 else blocks(world, size)
        seen[size] = seen.get(size, 0) + 1
    return partitions


def positions_of(partition: Partition) -> list[int]:
    """Return each rank's place in its group."""
    place = {rank: index for ranks in partition for index, rank in enumerate(ranks)}
    return [place[rank] for rank in sorted(place)]


def data_of(partition: Partition) -> list[int]:
    """Return the data index of each rank: the number of its TP group."""
    index = {rank: number for number, ranks in enumerate(partition) for rank in ranks}
    return [index[rank] for rank in sorted(index)]


def observations(partition: Partition, what: Iterable[str], model: str = "m") -> list[dict[str, Any]]:
    """Return the steps that observe an engine whose data is equal within these TP groups."""
    extra = {"data": data_of(partition), "positions": positions_of(partition)}
    return [{"op": "observe", "model": model, "what": name, **(extra if name == "numbers" else {})} for name in what]


def _intended(case: Case, partitions: Mapping[str, Partition]) -> Partition:
    """Return the TP groups that the case's author intends: a given group's, else contiguous ones of a given size."""
    call, section, mpu, world = case["call"], case["section"], case["mpu"], case["world_size"]
    handles = [
        call and call["tp_group"],
        mpu and mpu["tp_group"],
        section and section["tp_group"],
        case["mesh"],
    ]
    for handle in handles:
        if handle is not None:
            return partitions[handle]
    given = [section and section["autotp_size"], section and section["tp_size"], call and call["tp_size"]]
    size = next((size for size in given if size), 1)
    return blocks(world, size if 1 <= size <= world and world % size == 0 else 1)


def job_of(case: Case, name: str, timeout: float, *, meshes: bool) -> dict[str, Any]:
    """Return the job for the input of a vector. Raises Skip if real ranks can't run it.

    With `meshes` a mesh group becomes the TP dimension of a torch DeviceMesh.
    """
    world = case["world_size"]
    if world not in WORLDS:
        raise Skip(f"a world of {world} ranks; here are worlds of {' and '.join(map(str, WORLDS))}")
    if case["mesh"] is not None and not meshes:
        raise Skip("mesh_param is (data_parallel, sequence_parallel): it has no tensor-parallel dimension")
    partitions = materialise(case)
    groups: dict[str, Any] = dict(partitions)
    initialize: dict[str, Any] = {"op": "initialize", "model": "m", "config": "c"}
    if case["mpu"] is not None:
        tp = case["mpu"]["tp_group"]
        groups["dp_of_mpu"] = orthogonal(partitions[tp])
        initialize["mpu"] = {"tp": tp, "dp": "dp_of_mpu"}
    if case["mesh"] is not None:
        groups[case["mesh"]] = {"mesh": case["groups"][case["mesh"]]}
        initialize["mesh"] = {"of_group": case["mesh"]}
    steps: list[dict[str, Any]] = [*_call_step(case), initialize]
    intended = _intended(case, partitions)
    steps += observations(intended, ("numbers", "sharding", "averaging", "check"))
    return {
        "id": name,
        "world": world,
        "groups": groups,
        "configs": {"c": _config(case)},
        "steps": steps,
        "timeout": timeout,
        "partitions": partitions,
        "intended": intended,
    }


def _call_step(case: Case) -> Sequence[dict[str, Any]]:
    call = case["call"]
    if call is None:
        return []
    group = None if call["tp_group"] is None else {"$group": call["tp_group"]}
    dtype = {"$dtype": call["dtype"]}
    return [{"op": "call", "model": "m", "tp_size": call["tp_size"], "dtype": dtype, "tp_group": group}]


def _config(case: Case) -> dict[str, Any]:
    config = {**BASE, **_PRECISION.get(case["precision"] or "", {})}
    section = case["section"]
    if section is not None:
        inside = {} if section["tp_size"] is None else {"tp_size": section["tp_size"]}
        if section["tp_group"] is not None:
            inside["tp_group"] = {"$group": section["tp_group"]}
        given = {name: section[name] for name in ("autotp_size", "dtype") if section[name] is not None}
        config["tensor_parallel"] = {**given, **({"tp": inside} if inside else {})}
    return config
