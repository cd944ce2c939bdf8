"""Finds what can't be planned at all: models that something else has wrapped, and parameters that are no plain tensors.

What may be there is a short list: modules of the user, and strided parameters of floating-point numbers in memory of
their own. Integers are legal in layers that are never sharded.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from tpinit.runtime.internals.torch_private import is_compiled
from tpinit.runtime.planning.analysis.attachments import is_replaced

__all__ = ["tensor_kind_problems", "wrapper_problems"]

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_REPLICAS = "initialize the model itself: the engine averages gradients over data-parallel ranks"
_WRAPPERS = {
    "torch.nn.parallel.distributed.DistributedDataParallel": _REPLICAS,
    "torch.nn.parallel.data_parallel.DataParallel": f"{_REPLICAS}, and each process has one device",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": _REPLICAS,
    "torch.optim.swa_utils.AveragedModel": "initialize the model itself, and average its weights afterwards",
    "tpinit.runtime.training.engine.Engine": "it is an engine already: build a new model for another run",
}


def wrapper_problems(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the name and the problem of every module that wraps another one, or was compiled or scripted."""
    for name, module in model.named_modules():
        kind = type(module)
        shown = name or kind.__qualname__
        remedies = [_WRAPPERS.get(f"{base.__module__}.{base.__qualname__}") for base in kind.__mro__]
        remedy = next((one for one in remedies if one is not None), None)
        if remedy is not None:
            yield shown, f"it is wrapped in a {kind.__qualname__}: {remedy}"
        elif is_compiled(module):
            yield shown, "it is compiled by torch.compile: initialize first, then compile engine.module or its parts"
        elif isinstance(module, torch.jit.ScriptModule):
            yield shown, "it is compiled by torch.jit: initialize the model that was scripted or traced"


def tensor_kind_problems(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the name and the problem of every parameter that can't be sliced, averaged or updated as a plain one."""
    for name, module in model.named_modules():
        if getattr(module, "sparse", False) is True and isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            yield name, "its gradient is sparse: set sparse=False (the gradients of ranks are added as dense tensors)"
        for key, parameter in module.named_parameters(recurse=False):
            problem = _tensor_problem(parameter, in_layer=is_replaced(module))
            if problem:
                yield f"{name}.{key}" if name else key, problem


def _tensor_problem(parameter: nn.Parameter, *, in_layer: bool) -> str:
    if parameter.layout is not torch.strided:
        return f"its layout is {parameter.layout}: make it dense (to_dense)"
    if parameter.is_complex():
        return f"its dtype is {parameter.dtype}: hold the real and imaginary parts as two parameters"
    if in_layer and parameter.dtype not in _FLOATS:
        return (
            f"its dtype is {parameter.dtype}, so the layer is quantized: load the model in fp32, bf16 or fp16, or "
            "dequantize it before initialize"
        )
    if parameter.is_inference():
        return "it was made under torch.inference_mode, and can't be trained: build the model outside of it"
    if any(stride == 0 and size > 1 for stride, size in zip(parameter.stride(), parameter.shape, strict=True)):
        return "its elements share memory (expand): clone it"
    return ""
