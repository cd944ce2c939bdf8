"""A checkpoint of ours that holds a model alone, written without ranks, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from tpinit.runtime.checkpoint.model_tensors import ModelTensors, TensorSpec
from tpinit.runtime.checkpoint.places import Box, Write
from tpinit.runtime.checkpoint.save import write_manifest
from tpinit.runtime.checkpoint.values import encode

__all__ = ["write_checkpoint"]


def write_checkpoint(
    source: ModelTensors,
    specs: Mapping[str, TensorSpec],
    masters: Mapping[str, TensorSpec],
    folder: Path,
    origin: str,
) -> list[str]:
    """Write the tensors in the dtypes of `specs`, and fp32 `masters` of some; return the names of the files.

    `origin` is where they come from, for the reader of the manifest. `load_checkpoint(..., load_module_only=True)`
    loads it. Needs memory for one tensor and its copy in another dtype.
    """
    from tpinit.runtime.checkpoint.dcp_writer import ChunkPlanner, ChunkWriter

    wanted = {f"model.{name}": spec for name, spec in specs.items()}
    wanted |= {f"master.{name}": spec for name, spec in masters.items()}
    writes = [
        Write(
            name,
            spec.shape,
            Box((0,) * len(spec.shape), spec.shape),
            torch.empty(spec.shape, dtype=spec.dtype, device="meta"),
        )
        for name, spec in wanted.items()
    ]

    def read(write: Write) -> torch.Tensor:
        return source.read(write.name.partition(".")[2]).to(write.values.dtype)

    writer = ChunkWriter(folder)
    planner = ChunkPlanner(writes, read)
    # What torch.distributed.checkpoint.save does on one rank; it warns that there are no others.
    writer.reset(folder)
    writer.set_up_storage_writer(True)
    plans, index = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    (plan,) = writer.prepare_global_plan(plans)
    writer.finish(index, [writer.write_data(plan, planner).wait()])
    page = {
        "weights_only": True,
        "origin": origin,
        "topology": {"tp_size": 1, "replicas": 1},
        "excluded": [],
        "client_state": encode({}, "client_state"),
    }
    write_manifest(writer, page, folder)
    return sorted(path.name for path in folder.iterdir())
