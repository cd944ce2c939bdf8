"""The TP group of a torch DeviceMesh; meshes with dimensions that are not implemented are refused."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.spellings import show

__all__ = ["mesh_tp_group"]

_TP = ("tp", "tensor_parallel")
_DP = ("dp", "data_parallel")


def mesh_tp_group(mesh: object) -> ProcessGroup | None:
    """Return the group of the mesh's tensor-parallel dimension on this rank; None without a mesh.

    The mesh must have a dimension named `tp` or `tensor_parallel`. Every other dimension with more than one rank must
    be data-parallel (`dp`, `data_parallel`): the groups orthogonal to the TP groups average gradients. Raises
    ConfigError for any other mesh, and for DeepSpeed's tuple, which has no tensor-parallel dimension.
    """
    if mesh is None:
        return None
    if not isinstance(mesh, DeviceMesh):
        raise _refusal(
            mesh,
            "DeepSpeed's tuple is (data_parallel, sequence_parallel) and has no tensor-parallel dimension"
            if isinstance(mesh, (tuple, list))
            else "this is not a torch DeviceMesh",
        )
    names = mesh.mesh_dim_names or ()
    found = [name for name in names if name in _TP]
    if len(found) != 1:
        raise _refusal(mesh, f"a mesh needs one dimension named tp or tensor_parallel, and this one has {list(names)}")
    others = [name for name, size in zip(names, mesh.mesh.shape, strict=True) if name not in (*_TP, *_DP) and size > 1]
    if others:
        raise _refusal(mesh, f"the dimensions {others} are neither tensor- nor data-parallel, and are not implemented")
    if mesh.get_coordinate() is None:
        raise _refusal(mesh, f"rank {dist.get_rank()} is not in this mesh: a mesh must hold every rank of the world")
    return mesh.get_group(found[0])


def _refusal(mesh: object, message: str) -> ConfigError:
    fix = 'give torch.distributed.init_device_mesh(device, (dp, tp), mesh_dim_names=("dp", "tp"))'
    return ConfigError([Problem("mesh_param", show(mesh), message, fix)])
