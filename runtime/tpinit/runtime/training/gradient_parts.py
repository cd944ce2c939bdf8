"""The gradient of a sharded parameter, as a person reads it: a part, with which whole-tensor computing is refused.

`param.grad` of a sharded parameter holds this rank's slice. Computing entry by entry is right on a slice. A norm, a
mean, a sort, a product of matrices or an index would be that of the slice, without a sign. So behind a backward the
gradient is a `GradientPart`: the same storage, and functions that compute entry by entry run as on a plain tensor; all
others raise. The runtime itself, optimizers and torch's clipping see plain tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from types import GetSetDescriptorType
from typing import Any

import torch
from tpinit.runtime.errors import EngineError
from tpinit.runtime.internals.foreach_private import foreach_functions, support_foreach
from tpinit.runtime.internals.torch_private import as_subclass, plain_tensor_functions
from tpinit.runtime.planning.schema import ParameterPlan

__all__ = ["ELEMENTWISE", "GradientPart", "mark_part", "plain_gradient"]

ELEMENTWISE = (
    "abs absolute neg negative positive sign sgn square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p sin "
    "cos tan asin acos atan sinh cosh tanh sigmoid erf erfc floor ceil round trunc frac relu nan_to_num "
    "add sub subtract rsub mul multiply div divide true_divide floor_divide floordiv truediv fmod remainder mod pow "
    "maximum minimum fmax fmin clamp clamp_min clamp_max clip copysign hypot atan2 addcmul addcdiv lerp where "
    "masked_fill isnan isinf isfinite isposinf isneginf signbit isclose eq ne lt le gt ge less less_equal greater "
    "greater_equal not_equal logical_and logical_or logical_xor logical_not and or xor invert"
)
"""Functions of torch whose result at each place depends on the operands at that place alone."""

_COPIES = (
    "detach clone contiguous to type_as float double half bfloat16 int long bool cpu cuda pin_memory copy fill zero "
    "zeros_like ones_like empty_like full_like requires_grad retain_grad"
)
_METADATA = (
    "size dim numel nelement ndimension stride is_contiguous storage_offset element_size data_ptr get_device "
    "is_floating_point is_complex is_inference is_conj is_neg is_same_size is_set_to is_shared untyped_storage "
    "as_subclass register_hook record_stream new_zeros new_ones new_empty new_full new_tensor new __hash__ __len__ "
    "__repr__ __format__ __reduce_ex__ _is_view type"
)
_VALUES = "data real imag T H mT mH __cuda_array_interface__"  # the properties of a tensor that hold its entries
_TAKES_PROPERTIES = ("data", "requires_grad", "grad")
_COLLECTIVES = "torch.distributed.distributed_c10d"  # over other ranks with this part: see `parts_in_functions`
_COMPARISONS = frozenset((torch.equal, torch.allclose, torch.Tensor.equal, torch.Tensor.allclose))


def _functions(names: str) -> Iterator[Callable[..., Any]]:
    """Yield the functions of these names: of torch and of Tensor, in place, and as operators."""
    for name in names.split():
        for form in (name, f"{name}_", f"__{name}__", f"__r{name}__", f"__i{name}__"):
            for owner in (torch, torch.Tensor, torch.special):
                found = getattr(owner, form, None)
                if callable(found) and not isinstance(found, (type, torch.dtype)):
                    yield found


def _properties() -> Iterator[str]:
    kinds = (GetSetDescriptorType, property)
    return (name for name in dir(torch.Tensor) if isinstance(getattr(torch.Tensor, name), kinds))


_ENTRY_BY_ENTRY = frozenset(
    (
        *_functions(ELEMENTWISE),
        *_functions(_COPIES),
        *foreach_functions(),
        torch.Tensor.data.__get__,  # type: ignore[attr-defined]  # a descriptor of C
    )
)
_READS = frozenset(
    (
        *(getattr(torch.Tensor, name) for name in _METADATA.split()),
        *(getattr(torch.Tensor, name).__get__ for name in _properties() if name not in _VALUES.split()),
        *(getattr(torch.Tensor, name).__set__ for name in _TAKES_PROPERTIES),
        *(getattr(torch.Tensor, name).__delete__ for name in ("grad",)),
        *(torch.is_floating_point, torch.is_complex, torch.numel, torch.is_same_size),
    )
)


class GradientPart(torch.Tensor):
    """The slice of a gradient that a rank has. Raises EngineError for functions that don't compute entry by entry."""

    tp_record: ParameterPlan

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function on plain tensors. What has an entry for each entry of the part is such a part again."""
        kwargs = kwargs or {}
        with plain_tensor_functions():
            if func in _READS or getattr(func, "__module__", "") == _COLLECTIVES:
                return func(*args, **kwargs)
            given = list(_tensors((*args, *kwargs.values())))
            part = next(one for one in given if isinstance(one, GradientPart))
            if func in _COMPARISONS and all(one.shape == part.shape for one in given):
                return func(*args, **kwargs)
            if func in _ENTRY_BY_ENTRY or (func is torch.Tensor.__setitem__ and _is_mask(args, part)):
                return _marked(func(*args, **kwargs), given, part, func)
        raise _error(part, func)

    def __deepcopy__(self, memo: dict[int, Any]) -> GradientPart:
        """Return a copy of the part."""
        return mark_part(copy.deepcopy(plain_gradient(self), memo), self.tp_record)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the values as a plain tensor."""
        return plain_gradient(self).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]  # torch leaves it untyped


support_foreach(GradientPart)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (one for one in value if isinstance(one, torch.Tensor))


def _is_mask(args: Any, part: torch.Tensor) -> bool:
    """Return whether these are (tensor, a mask of its shape, one value)."""
    _, index, value = args
    is_mask = isinstance(index, torch.Tensor) and index.dtype is torch.bool and index.shape == part.shape
    return is_mask and (not isinstance(value, torch.Tensor) or value.ndim == 0)


def _marked(result: Any, given: list[torch.Tensor], part: GradientPart, func: Any) -> Any:
    """Return a result as a part of the same gradient; what was given is itself. Raises EngineError for another size."""
    if isinstance(result, (list, tuple)):
        parts = [one for one in given if isinstance(one, GradientPart)]
        return [_marked(one, given, next((of for of in parts if of.shape == one.shape), part), func) for one in result]
    if not isinstance(result, torch.Tensor):
        return result
    if any(result is one for one in given):
        if type(result) is torch.Tensor and result.shape == part.shape:  # a tensor of the caller was written
            result.__class__ = GradientPart
            result.tp_record = part.tp_record  # type: ignore[attr-defined]  # it is a GradientPart now
        return result
    if result.shape != part.shape:
        raise _error(part, func)
    return mark_part(result, part.tp_record)


def mark_part(tensor: torch.Tensor, record: ParameterPlan) -> GradientPart:
    """Return a tensor as this rank's part of the gradient of a parameter. It shares the values."""
    with plain_tensor_functions():
        part: GradientPart = (
            tensor.as_subclass(GradientPart) if tensor.requires_grad else as_subclass(tensor, GradientPart)
        )
    part.tp_record = record
    return part


def plain_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Return a plain tensor that shares the values of a part; any other tensor itself."""
    if not isinstance(tensor, GradientPart):
        return tensor
    with plain_tensor_functions():
        return tensor.as_subclass(torch.Tensor)


def _error(part: GradientPart, func: Any) -> EngineError:
    record = part.tp_record
    name = getattr(func, "__name__", str(func))
    if name in ("__get__", "__set__"):
        name = getattr(func.__self__, "__name__", name)
    return EngineError(
        f"{name} of the gradient of {record.name}: this rank has the part {list(part.shape)} of {list(record.shape)}, "
        "and a function that does not compute entry by entry would take it for the whole. For a norm call "
        "engine.clip_grad_norm_ or torch.nn.utils.get_total_norm, for another sum engine.sum_over_parameters; "
        "grad.as_subclass(torch.Tensor) is the part as a plain tensor"
    )
