"""The output of a training forward with labels: it has the loss and no logits, and reading them raises."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from tpinit.runtime.errors import MissingOutputError

__all__ = ["without_logits"]

_NAME = "logits"
_ABSENT = object()


def without_logits(output: Mapping[str, Any]) -> Any:
    """Return an output of the same class and items as `output`, a ModelOutput, whose logits can't be read.

    `.logits`, `["logits"]`, `.get("logits")`, the index of the logits and `to_tuple` raise MissingOutputError. The
    other items keep their names and their index, and `keys`, `values` and `items` go over them: pickle, copies, repr
    and code that visits each tensor of an output work as before.
    """
    return _rebuild(type(output), {name: value for name, value in output.items() if name != _NAME})


def _error() -> MissingOutputError:
    return MissingOutputError(
        "the logits of a training forward with labels: the loss was computed from this rank's part of the vocabulary, "
        "and the logits were not gathered. Call the model without labels and compute the loss from .logits; or in "
        "evaluation mode or under torch.no_grad(), with labels; or use initialize(..., gather_logits=True), which "
        "gathers them in each forward"
    )


def _rebuild(original: type, items: dict[str, Any]) -> Any:
    return _derived(original)(**items)


@cache
def _derived(original: Any) -> Any:
    """Return the subclass of a ModelOutput class whose logits can't be read."""

    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        # The class's own __init__ reads and sets each field; accelerate passes one dict.
        self.__class__ = original
        original.__init__(self, *args, **kwargs)
        self.__class__ = derived

    def read(self: Any) -> Any:
        if self.__dict__.get(_NAME) is None:
            raise _error()
        return self.__dict__[_NAME]

    def write(self: Any, value: Any) -> None:
        self.__dict__[_NAME] = value

    def values(self: Any) -> list[Any]:
        """Return the items in the order of the fields, _ABSENT in place of the logits."""
        held = {name: _ABSENT if name == _NAME else None for name in original.__dataclass_fields__} | dict(self.items())
        return [value for value in held.values() if value is not None]

    def get_item(self: Any, key: Any) -> Any:
        if isinstance(key, str):
            return read(self) if key == _NAME else dict(self.items())[key]
        found = values(self)[key]
        if any(value is _ABSENT for value in (found if isinstance(key, slice) else [found])):
            raise _error()
        return tuple(found) if isinstance(key, slice) else found

    def get(self: Any, key: str, default: Any = None) -> Any:
        return read(self) if key == _NAME else dict(self.items()).get(key, default)

    def show(self: Any) -> str:
        items = ", ".join(f"{name}={value!r}" for name, value in self.items())
        return f"{original.__name__}({items}; its logits were not gathered)"

    namespace: dict[str, Any] = {
        "__module__": original.__module__,
        "__doc__": original.__doc__,
        "__init__": initialise,
        "__getitem__": get_item,
        "__repr__": show,
        "__reduce__": lambda self: (_rebuild, (original, dict(self.items()))),
        "get": get,
        "to_tuple": lambda self: get_item(self, slice(None)),
        _NAME: property(read, write),
    }
    derived = type(original.__name__, (original,), namespace)
    return derived
