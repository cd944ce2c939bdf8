"""What steers a run besides the config, the model and the groups: the arguments of the call, and the environment.

Ranks compare these as fields of their first report, so a keyword that one rank was given and another was not is found
before anything else happens. Values of a rank's own, such as tensors, models and groups, are told by type and shape.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from tpinit.runtime.groups.agreement import flatten

__all__ = ["argument_fields", "environment_fields"]

# Compared elsewhere, part by part: model, config and plan. `args` holds what is a rank's own, as local_rank.
_ELSEWHERE = ("args", "model", "config", "config_params", "plan", "weights")
_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
_DEPTH = 4  # of nested containers that are told by their values
_LENGTH = 32  # of such containers; a longer one is told by its length


def argument_fields(arguments: Mapping[str, Any]) -> dict[str, object]:
    """Return what ranks compare of the arguments of `initialize`, by "argument.name"."""
    fields: dict[str, object] = {}
    for name, value in arguments.items():
        if name not in _ELSEWHERE:
            fields.update(flatten(_told(value), f"argument.{name}"))
    fields["argument.plan"] = "given" if arguments.get("plan") is not None else None
    scheduler: Any = arguments.get("lr_scheduler")
    if hasattr(scheduler, "step") and hasattr(scheduler, "state_dict"):
        fields.update(flatten(_told(scheduler.state_dict()), "argument.lr_scheduler.state"))
    return fields


def environment_fields() -> dict[str, object]:
    """Return what ranks compare of their environment: versions, torch's switches, variables that change numbers."""
    variables = sorted(name for name in os.environ if name.startswith("TPINIT_") or name in _VARIABLES)
    return {
        "version.python": platform.python_version(),
        "version.torch": torch.__version__,
        "version.tpinit": version("tpinit"),
        "version.transformers": getattr(sys.modules.get("transformers"), "__version__", None),
        "torch.default_dtype": str(torch.get_default_dtype()),
        "torch.float32_matmul_precision": torch.get_float32_matmul_precision(),
        "torch.deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        **{f"environment.{name}": os.environ[name] for name in variables},
    }


def _told(value: Any, depth: int = 0) -> object:
    """Return plain values that tell one argument from another and are equal in two processes."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        return f"a tensor of {tuple(value.shape)}, {value.dtype}"
    if isinstance(value, DeviceMesh):
        return f"a mesh of {tuple(value.shape)}, {value.mesh_dim_names}"
    if isinstance(value, (list, tuple, Mapping)) and (depth == _DEPTH or len(value) > _LENGTH):
        return f"{type(value).__qualname__} of {len(value)} values"
    if isinstance(value, (list, tuple)):
        return [_told(one, depth + 1) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _told(one, depth + 1) for key, one in value.items()}
    name = getattr(value, "__qualname__", None) if callable(value) else None
    return f"{name or type(value).__qualname__} of {getattr(value, '__module__', None) or type(value).__module__}"
