"""Reads an mpu (with DeepSpeed's six methods, or with Megatron's names) into the contract's `Mpu`."""

from __future__ import annotations

from collections.abc import Callable

from tpinit.reference.errors import Problem
from tpinit.reference.groups import GroupTable
from tpinit.reference.spellings import plain_int, show
from tpinit.spec.vocabulary import Group, Mpu

__all__ = ["read_mpu"]

# Megatron's model-parallel group spans tensor and pipeline ranks, so its tensor group is tried first (section 4).
_TP_FAMILIES = ("tensor_model_parallel", "model_parallel")


def read_mpu(mpu: object, groups: GroupTable, problems: list[Problem]) -> Mpu | None:
    """Return the groups of an mpu, or None after adding what is wrong with it to `problems`.

    The TP group comes from `get_tensor_model_parallel_group()`, else `get_model_parallel_group()`; the DP
    group, if the mpu has one, from `get_data_parallel_group()`. A world size that the mpu reports for a group
    must equal the group's size. Every method is called at most once.
    """
    family = next((name for name in _TP_FAMILIES if _method(mpu, f"get_{name}_group") is not None), None)
    if family is None:
        problems.append(
            Problem(
                "mpu",
                show(mpu),
                "this is not an mpu: it has neither get_model_parallel_group() nor get_tensor_model_parallel_group()",
                "give an object with get_{model,data}_parallel_{rank,group,world_size}() or Megatron's parallel_state",
            )
        )
        return None
    tp_group = _group(mpu, family, groups, problems)
    dp_group = None
    if _method(mpu, "get_data_parallel_group") is not None:
        dp_group = _group(mpu, "data_parallel", groups, problems, required=False)
    return Mpu(tp_group, dp_group) if tp_group is not None else None


def _group(
    mpu: object, family: str, groups: GroupTable, problems: list[Problem], *, required: bool = True
) -> Group | None:
    """Read one group, and compare its size with the world size that the mpu reports for it."""
    path = f"mpu.get_{family}_group()"
    handle, failed = _call(mpu, f"get_{family}_group", problems)
    if failed:
        return None
    if handle is None:
        if required:
            problems.append(Problem(path, "null", "the mpu has no such group", "initialise the mpu first"))
        return None
    group = groups.group(handle, path, problems)
    if group is None or _method(mpu, f"get_{family}_world_size") is None:
        return group
    size, failed = _call(mpu, f"get_{family}_world_size", problems)
    if not failed and plain_int(size) != group.size:
        path = f"mpu.get_{family}_world_size()"
        message = f"the mpu reports the size {show(size)}, but its group has {group.size} ranks"
        problems.append(Problem(path, show(size), message, "correct the mpu: both must agree"))
    return group


def _call(mpu: object, name: str, problems: list[Problem]) -> tuple[object, bool]:
    """Call one method; return its value and whether it failed. An exception becomes a problem that quotes it."""
    method = _method(mpu, name)
    assert method is not None
    try:
        return method(), False
    except Exception as error:  # a user's method may raise anything
        message = f"this raised {type(error).__name__}: {error}"
        problems.append(Problem(f"mpu.{name}()", "", message, "initialise the mpu before passing it", cause=error))
        return None, True


def _method(mpu: object, name: str) -> Callable[[], object] | None:
    try:
        method = getattr(mpu, name, None)
    except Exception:  # a user's property may raise anything: the mpu then counts as without the method
        return None
    return method if callable(method) else None
