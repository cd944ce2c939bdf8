"""Private names of torch, each behind a function that says what it is for.

`PRIVATE_NAMES` lists them. A release of torch that renames one breaks the test of that name, and this module alone.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, MutableMapping, Sequence
from datetime import timedelta
from operator import itemgetter
from types import CellType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import ProcessGroup, distributed_c10d
from torch.distributed.constants import default_pg_timeout
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from tpinit.runtime.internals.wrapper_private import closure_cell

__all__ = [
    "BACKWARD_HOOKS",
    "CALL_METHODS",
    "FORWARD_HOOKS",
    "NORMAL_BLOCK",
    "NO_OP_ON_META",
    "PRIVATE_NAMES",
    "PlainDispatchMode",
    "SCALES_IN_STEP",
    "TorchDispatchMode",
    "after_backward",
    "assert_async",
    "as_subclass",
    "attached_hooks",
    "backward_number",
    "buffers_of",
    "call_state",
    "child_of",
    "children_of",
    "default_store",
    "empty_module_state",
    "found_infs",
    "global_hooks",
    "in_compiled_call",
    "init_namespace",
    "is_batch_norm",
    "is_compiled",
    "is_mutable",
    "is_original_method",
    "local_gloo_group",
    "named_arguments",
    "parameters_of",
    "plain_tensor_functions",
    "set_class",
    "set_timeout",
    "storage_key",
    "tensor_hooks",
    "tensor_state",
    "total_norm_cell",
    "timeout_of",
    "unwrapped",
    "tree_leaves",
    "tree_map_only",
    "version_of",
    "writes_only_first",
]

PRIVATE_NAMES: dict[str, str] = {
    "nn.Module._parameters": "a module's own parameters, ties included, to replace one in place",
    "nn.Module._buffers": "a module's own buffers, to replace one in place",
    "nn.Module._modules": "a module's children, to fold equal layers of a ModuleList",
    "nn.Module._forward_hooks": "the hooks that a fake forward must not run",
    "nn.Module._forward_hooks_with_kwargs": "the same",
    "nn.Module._forward_pre_hooks": "the same",
    "nn.Module._forward_pre_hooks_with_kwargs": "the same",
    "nn.Module._backward_hooks": "the backward hooks of a module, full and legacy",
    "nn.Module._backward_pre_hooks": "the same",
    "torch.nn.modules.module._global_forward_hooks": "hooks that run for every module",
    "torch.nn.modules.module._global_forward_pre_hooks": "the same",
    "torch.nn.modules.module._global_backward_hooks": "the same",
    "torch.nn.modules.module._global_backward_pre_hooks": "the same",
    "Tensor._backward_hooks": "the hooks on the gradient of a parameter",
    "Tensor._post_accumulate_grad_hooks": "the same",
    "nn.Module._call_impl": "what a call of a module runs; a class that replaces it computes something else",
    "nn.Module._wrapped_call_impl": "the same",
    "nn.Module._slow_forward": "the same",
    "nn.modules.batchnorm._NormBase": "modules whose buffers change in a training forward",
    "torch._dynamo.eval_frame.compile_wrapper": "the function that torch.compile returns, in a stack of calls",
    "torch._dynamo.eval_frame.OptimizedModule._orig_mod": "the module that torch.compile wrapped",
    "ActivationWrapper._checkpoint_wrapped_module": "the module that torch's activation checkpointing wrapped",
    "torch._assert_async": "a device-side assertion that no step waits for",
    "UntypedStorage._cdata": "the identity of a storage, equal for all views of it",
    "Tensor._make_subclass": "shows a sharded parameter without its values",
    "torch._C.DisableTorchFunctionSubclass": "reads the shape and dtype of such a parameter",
    "Tensor._version": "a counter that in-place writes advance",
    "OpOverload._schema": "names of an operator's arguments, and which of them it writes",
    "torch.nn.init._no_grad_trunc_normal_": "the body of trunc_normal_, which transformers calls",
    "torch.utils._python_dispatch.TorchDispatchMode": "the base of modes that watch aten operators",
    "TorchDispatchMode._should_skip_dynamo": "keeps dynamo's guard out of modes that no compiler runs under",
    "torch.utils._pytree.tree_leaves": "the tensors in nested arguments",
    "torch.utils._pytree.tree_map_only": "the same, replaced",
    "distributed_c10d._get_default_store": "the store of the world: ranks exchange texts without a device",
    "distributed_c10d._new_process_group_helper": "a group of a given name that its members alone make",
    "distributed_c10d._world": "the ranks of such a group, for those who ask torch",
    "distributed_c10d._set_pg_timeout": "another time-out for a group than that of its making",
    "ProcessGroup._get_backend": "the time-out of a group, for the groups that are made beside it",
    "Module.__class__ assignment": "gives a linear its parallel forward and leaves its identity",
    "torch._C._current_graph_task_id": "tells one backward from the next",
    "torch.autograd.Variable._execution_engine": "runs a function when the running backward ends, as DDP does",
    "torch.nn.utils.clip_grad._get_total_norm": "the norm by which clip_grad_norm_ clips, a closure around `func`",
    "Optimizer._step_supports_amp_scaling": "whether GradScaler leaves unscaling to the step of a fused optimizer",
    "GradScaler._per_optimizer_states": "whether this rank's gradients overflow, for each device",
    "normal_ draws in blocks of 16": "draws a long tensor piece by piece with the same values",
}
"""Every private name, and private behaviour, of torch that the runtime leans on; and what for."""

FORWARD_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
)
"""The attributes of a module that hold its forward hooks."""

_MODULE_HOOKS = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}

_TENSOR_HOOKS = {
    "_backward_hooks": "hook on its gradient",
    "_post_accumulate_grad_hooks": "hook after its gradient is accumulated",
}

SCALES_IN_STEP = "_step_supports_amp_scaling"
"""The attribute of an optimizer whose step unscales gradients itself for GradScaler."""

BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
"""The attributes of a module that hold its backward hooks."""

TENSORS = ("_parameters", "_buffers")
"""The attributes of a module that hold its parameters and buffers."""

CHILDREN = "_modules"
"""The attribute of a module that holds its children."""

CALL_METHODS = ("_call_impl", "_wrapped_call_impl", "_slow_forward")
"""The methods of a module through which a call reaches its forward."""

_REPLACED_METHODS = ("forward", *CALL_METHODS)
_CALLED = itemgetter(*_MODULE_HOOKS, "_modules", "_parameters")

NORMAL_BLOCK = 16
"""`normal_` on a CPU draws in blocks of this many elements: a multiple of it can be drawn alone."""

NO_OP_ON_META = ("trunc_normal_", "_no_grad_trunc_normal_", "orthogonal_", "sparse_", "dirac_")
"""Functions of torch.nn.init that do nothing on the meta device."""


class PlainDispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves the base untyped
    """The base of our modes. Dynamo's guard is left out: it costs more than a fake forward, and none is compiled."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the same

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: nothing here has to be hidden from a compiler."""
        return False


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the module's own parameters by attribute, ties included. Writing to the dict replaces a parameter."""
    return module._parameters


def child_of(module: nn.Module, name: str) -> nn.Module | None:
    """Return a module's own child, None without one, also before torch's constructor ran. Calls no `__getattr__`."""
    children: dict[str, nn.Module | None] = module.__dict__.get("_modules", {})
    return children.get(name)


def buffers_of(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Return the module's own buffers by attribute. Writing to the dict replaces a buffer."""
    return module._buffers


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the module's children by attribute. Writing to the dict replaces a child."""
    return module._modules


def attached_hooks(module: nn.Module) -> list[tuple[str, Any]]:
    """Return the (kind, function) of every hook that runs in a forward or backward of this module."""
    return [
        (kind, function)
        for name, kind in _MODULE_HOOKS.items()
        for function in (getattr(module, name, None) or {}).values()
    ]


def global_hooks() -> list[tuple[str, Any]]:
    """Return the (kind, function) of every hook that runs in a forward or backward of all modules."""
    return [
        (f"global {kind}", function)
        for name, kind in _MODULE_HOOKS.items()
        for function in getattr(torch.nn.modules.module, f"_global{name}").values()
    ]


def tensor_hooks(tensor: torch.Tensor) -> list[tuple[str, Any]]:
    """Return the (kind, function) of every hook on the gradient of a leaf tensor."""
    return [
        (kind, function)
        for name, kind in _TENSOR_HOOKS.items()
        for function in (getattr(tensor, name, None) or {}).values()
    ]


def call_state(module: nn.Module) -> tuple[Any, ...]:
    """Return what decides which code a call of a module runs on which tensors, to be compared with `==`.

    These are its class, the methods that its instance replaces, its hooks, its children and its parameters.
    """
    own = module.__dict__
    replaced = {name: own[name] for name in own.keys() & _REPLACED_METHODS}
    *hooks, children, parameters = _CALLED(own)
    held = [tuple(one.values()) for one in hooks] if any(hooks) else None
    return type(module), replaced, held, [*map(id, children.values())], [*map(id, parameters.values())]


def tensor_state(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return the shape, dtype, device and hooks of a leaf tensor, to be compared with `==`."""
    hooks, after = tensor._backward_hooks, tensor._post_accumulate_grad_hooks
    return (
        tensor.shape,
        tensor.dtype,
        tensor.device,
        tuple(hooks.values()) if hooks else (),
        tuple(after.values()) if after else (),
    )


def is_compiled(module: nn.Module) -> bool:
    """Return whether a module is what `torch.compile(module)` returns."""
    return type(module).__module__.startswith("torch._dynamo.")


def in_compiled_call() -> bool:
    """Return whether something that `torch.compile` returned is running: its wrapper is in the stack of calls."""
    return any(frame.f_code.co_name == "compile_wrapper" for frame, _ in traceback.walk_stack(inspect.currentframe()))


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside of wrappers that compute the same: torch.compile's, and activation checkpointing's."""
    while type(module).__module__.startswith(("torch._dynamo.", "torch.distributed.algorithms._checkpoint.")):
        inner = getattr(module, "_orig_mod", None) or getattr(module, "_checkpoint_wrapped_module", None)
        if not isinstance(inner, nn.Module):
            break
        module = inner
    return module


def backward_number() -> int:
    """Return the number of the running backward; -1 outside of one."""
    return int(torch._C._current_graph_task_id())


def after_backward(function: Callable[[], None]) -> None:
    """Run a function when the running backward has accumulated its gradients."""
    torch.autograd.Variable._execution_engine.queue_callback(function)


def total_norm_cell() -> CellType:
    """Return the cell that holds the function which computes the norm for clip_grad_norm_ and get_total_norm.

    torch's own functions call it, so what is put there counts for those who imported them before, too.
    """
    return closure_cell(torch.nn.utils.clip_grad._get_total_norm, "func")


def found_infs(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the one-element tensors, 0 or 1, that say whether the unscaled gradients overflow, one for each device."""
    found: dict[Any, torch.Tensor] = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
    return list(found.values())


def is_original_method(kind: type[nn.Module], name: str) -> bool:
    """Return whether a method of a module class (`__call__`, `_call_impl`) is the code of torch's own nn.Module."""
    method = getattr(kind, name, None)
    code = getattr(method, "__code__", None)
    source = torch.nn.modules.module.__file__
    return method is getattr(nn.Module, name) and code is not None and code.co_filename == source


def as_subclass(tensor: torch.Tensor, kind: type[torch.Tensor]) -> Any:
    """Return a view of a tensor as an instance of a subclass, outside of autograd, with the same `requires_grad`."""
    return torch.Tensor._make_subclass(kind, tensor.detach(), tensor.requires_grad)


def plain_tensor_functions() -> Any:
    """Return a context in which functions treat instances of tensor subclasses as plain tensors."""
    return torch._C.DisableTorchFunctionSubclass()


def empty_module_state() -> dict[str, Any]:
    """Return the attributes of a new module: no parameters, buffers, children or hooks."""
    return nn.Module().__dict__


def is_batch_norm(module: nn.Module) -> bool:
    """Tell whether a training forward of this module writes to its buffers (batch norm and its kin)."""
    return isinstance(module, _NormBase)


def assert_async(condition: torch.Tensor, message: str) -> None:
    """Assert a one-element tensor where it lies. On a GPU the host does not wait: the error comes with a later call."""
    torch._assert_async(condition, message)


def storage_key(tensor: torch.Tensor) -> int:
    """Return a number that is equal for two tensors if one is a view of the other's storage, while both live."""
    return int(tensor.untyped_storage()._cdata)


def version_of(tensor: torch.Tensor) -> int:
    """Return the counter that every in-place write to the tensor advances; 0 in inference mode, which has none."""
    return 0 if tensor.is_inference() else tensor._version


def is_mutable(operator: Any) -> bool:
    """Tell whether an aten operator writes to one of its arguments."""
    return bool(operator._schema.is_mutable)


def writes_only_first(operator: Any) -> bool:
    """Tell whether an aten operator writes to no argument but the first."""
    return not any(one.alias_info is not None and one.alias_info.is_write for one in operator._schema.arguments[1:])


def named_arguments(operator: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments of a call of an aten operator by name."""
    return {**dict(zip([one.name for one in operator._schema.arguments], args, strict=False)), **(kwargs or {})}


def default_store() -> distributed_c10d.Store:
    """Return the key-value store with which the world was started."""
    return distributed_c10d._get_default_store()


def local_gloo_group(ranks: Sequence[int], name: str, timeout: timedelta | None) -> ProcessGroup:
    """Make a gloo group of some ranks of the world, this one among them. Its members alone call this, with one name.

    A name is for one group of a world. torch's own `new_group(..., use_local_synchronization=True)` numbers its groups
    by how many this rank knows: members that know different numbers, of groups that had only some of them, never meet.
    """
    world = dist.group.WORLD
    assert world is not None, "there is no world before init_process_group"
    _, store = distributed_c10d._world.pg_map[world]
    position = list(ranks).index(dist.get_rank())
    make, backend, named = distributed_c10d._new_process_group_helper, dist.Backend("gloo"), distributed_c10d.GroupName
    group: ProcessGroup
    timeout = timeout if timeout is not None else default_pg_timeout
    group, _ = make(len(ranks), position, list(ranks), backend, store, named(name), timeout=timeout)
    distributed_c10d._world.pg_group_ranks[group] = {rank: index for index, rank in enumerate(ranks)}
    return group


def timeout_of(group: ProcessGroup, kind: str) -> timedelta | None:
    """Return the time-out of a group's collectives on devices of this kind; None if its backend does not tell it."""
    try:
        options = group._get_backend(torch.device(kind)).options
    except (AttributeError, RuntimeError):
        return None
    found = getattr(options, "_timeout", None)
    return found if isinstance(found, timedelta) else None


def set_timeout(group: ProcessGroup, timeout: timedelta) -> None:
    """Let the next collectives of a group have another time-out."""
    distributed_c10d._set_pg_timeout(timeout, group)


def set_class(module: nn.Module, kind: type) -> None:
    """Make a module an instance of `kind`, a subclass of its own class. Its state and identity stay."""
    module.__class__ = kind


def init_namespace() -> MutableMapping[str, Any]:
    """Return the namespace of torch.nn.init, to replace its functions for a time."""
    return vars(torch.nn.init)
