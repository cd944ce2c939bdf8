"""Reads the values of the section: a reader for each kind of field (`fields`), and for objects of fields.

A malformed value adds a problem and reads as absent, so that one pass finds all problems.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeGuard

from tpinit.reference.errors import Problem
from tpinit.reference.fields import BLOCK_OF, Field, FieldKind, all_names, named
from tpinit.reference.groups import GroupTable
from tpinit.reference.spellings import DTYPE_SPELLINGS, dtype_named, is_absent, nearest, plain_int, printable, show
from tpinit.spec.vocabulary import DType

__all__ = ["Reader"]


@dataclass(slots=True)
class Reader:
    """Reads values by the table of fields. `problems` collects what is wrong; `groups` assigns group identities."""

    groups: GroupTable
    problems: list[Problem] = field(default_factory=list)

    def note(self, path: str, value: object, message: str, fix: str) -> None:
        """Add one problem that shows the given value."""
        self.problems.append(Problem(path, show(value), message, fix))

    def read_object(self, fields: tuple[Field, ...], value: object, path: str) -> dict[str, object] | None:
        """Return an object's fields by their own names, without absent ones (D3). Unknown keys are problems (D8)."""
        if not isinstance(value, dict):
            self.note(path, value, "this must be an object", "write { ... }, or leave the key out")
            return None
        known, read = named(fields), dict[str, object]()
        given: dict[str, str] = {}
        for key, item in value.items():
            below, known_field = f"{path}.{printable(key)}", known.get(key)
            if known_field is None:
                self._unknown(fields, key, item, below)
                continue
            if is_absent(item):
                continue
            first = given.setdefault(known_field.name, key)
            if first != key:
                message = f'"{first}" and "{key}" are two names of one setting'
                self.note(below, item, message, f'keep "{known_field.name}" and leave the other out')
            elif (result := _READERS[known_field.kind](self, known_field, item, below)) is not None:
                read[known_field.name] = result
        for legal in fields:
            if legal.required and legal.name not in given:
                message = f'the key "{legal.name}" is missing'
                self.problems.append(Problem(f"{path}.{legal.name}", "", message, legal.doc))
        return read

    def size(self, value: object, path: str) -> int | None:
        """Return a size: any integer (D7). Returns None after adding a problem for anything else."""
        size = plain_int(value)
        if size is not None:
            return size
        fix = "write an integer"
        if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,20}\s*", value):
            fix = f"write {int(value)} without quotes"
        elif isinstance(value, float) and value.is_integer():
            fix = f"write {int(value)}"
        self.note(path, value, f"a size is an integer, not {_kind_of(value)}", fix)
        return None

    def dtype(self, value: object, path: str) -> DType | None:
        """Return the dtype that a spelling or a torch dtype means (D8). Returns None after adding a problem."""
        dtype = dtype_named(value)
        if dtype is None:
            near = nearest(value if isinstance(value, str) else show(value), DTYPE_SPELLINGS)
            self.note(
                path,
                value,
                "a dtype is fp32, float32, float, fp16, float16, half, bf16 or bfloat16, with or without torch.",
                f'write "{near}"' if near else "write one of these",
            )
        return dtype

    def _unknown(self, fields: tuple[Field, ...], key: str, value: object, path: str) -> None:
        own = [name for legal in fields for name in all_names(legal)]
        blocks = [block for block, legal in BLOCK_OF if key in named(legal)]
        near = nearest(key, own)
        if key in ("bf16", "fp16", "bfloat16"):
            fix = "move it to the top level of the config, beside tensor_parallel"
        elif blocks:
            fix = f"it belongs in {blocks[0]}: move it there"
            if near:
                fix += f', or write "{near}"'
        else:
            fix = f'write "{near}"' if near else f"legal keys here: {', '.join(own)}"
        message = "unknown key" + (f'; the nearest legal key is "{near}"' if near else "")
        self.note(path, value, message, fix)


# --- one reader per kind -----------------------------------------------------------------------------


def _size(reader: Reader, _: Field, value: object, path: str) -> object:
    return reader.size(value, path)


def _count(reader: Reader, spec: Field, value: object, path: str) -> object:
    count = plain_int(value)
    if count is not None and count >= spec.minimum:
        return count
    reader.note(path, value, f"this must be an integer of at least {spec.minimum}", f"write {spec.minimum} or more")
    return None


def _bool(reader: Reader, _: Field, value: object, path: str) -> object:
    if isinstance(value, bool):
        return value
    reader.note(path, value, f"this must be true or false, not {_kind_of(value)}", "write true or false")
    return None


def _choice(reader: Reader, spec: Field, value: object, path: str) -> object:
    if isinstance(value, str) and (value.lower() if spec.kind is FieldKind.CHOICE else value) in spec.choices:
        return value
    near = nearest(value, spec.choices)
    legal = ", ".join(f'"{choice}"' for choice in spec.choices)
    reader.note(path, value, f"this must be one of {legal}", f'write "{near}"' if near else "write one of these")
    return None


def _dtype(reader: Reader, _: Field, value: object, path: str) -> object:
    return reader.dtype(value, path)


def _strings(reader: Reader, _: Field, value: object, path: str) -> object:
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) and item for item in value):
        return value
    fix = f"write [{show(value)}]" if isinstance(value, str) and value else 'write ["...", "..."]'
    reader.note(path, value, "this must be a list of non-empty strings", fix)
    return None


def _patterns(reader: Reader, spec: Field, value: object, path: str) -> object:
    if _strings(reader, spec, value, path) is None:
        return None
    assert isinstance(value, (list, tuple))
    if not value:
        reader.note(
            path, value, "the list is empty, so the spec would match nothing", "list at least one regular expression"
        )
    for index, pattern in enumerate(value):
        error = _pattern_error(pattern)
        if error is not None:
            message = f"this is not a regular expression: {error}"
            reader.note(f"{path}[{index}]", pattern, message, "correct it (Python's syntax)")
    return value


def _pattern_error(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)
    return None


def _shape(reader: Reader, _: Field, value: object, path: str) -> object:
    if not isinstance(value, (list, tuple)) or not value:
        reader.note(path, value, "a shape is a list of at least one size", "write for example [3, -1]")
        return None
    for index, size in enumerate(value):
        nested = isinstance(size, (list, tuple))
        sizes = list(size) if nested else [size]
        legal = all(_is_integer(item) and (item >= 1 or (item == -1 and not nested)) for item in sizes)
        if not sizes or not legal:
            message = "a size in a shape is an integer of at least 1, -1 (inferred), or a list of sizes"
            reader.note(f"{path}[{index}]", size, message, "write one of these")
    if list(value).count(-1) > 1 or sum(isinstance(size, (list, tuple)) for size in value) > 1:
        reader.note(path, value, "a shape has at most one -1 and at most one nested list", "write the other sizes")
        return None
    return value


def _tuple(reader: Reader, _: Field, value: object, path: str) -> object:
    if isinstance(value, (list, tuple)):
        return value
    reader.note(path, value, "this must be a list or tuple", "write [...]")
    return None


def _group(reader: Reader, _: Field, value: object, path: str) -> object:
    return reader.groups.group(value, path, reader.problems)


def _object(reader: Reader, spec: Field, value: object, path: str) -> object:
    return reader.read_object(spec.fields, value, path)


def _objects(reader: Reader, spec: Field, value: object, path: str) -> object:
    if not isinstance(value, (list, tuple)):
        reader.note(path, value, "this must be a list of objects", "write [{ ... }]")
        return None
    read = []
    for index, item in enumerate(value):
        below = f"{path}[{index}]"
        result = reader.read_object(spec.fields, item, below)
        if result is not None:
            _check_layer_spec(reader, result, below)  # a layer spec: no other kind of object comes in a list
        read.append(result)
    return read


def _forbidden(reader: Reader, spec: Field, value: object, path: str) -> object:
    reader.note(path, value, "an mpu in the section is malformed (D11)", spec.fix)
    return None


def _check_layer_spec(reader: Reader, spec: dict[str, object], path: str) -> None:
    """Check that the sharded dimension exists, and that only this dimension has a nested list."""
    shape = spec.get("shape")
    if shape is None:
        return
    assert isinstance(shape, (list, tuple))
    column = str(spec.get("partition_type", "column")).lower() == "column"
    cut = spec.get("partition_dim", 0 if column else 1)
    assert isinstance(cut, int)
    if cut >= len(shape):
        message = f"dimension {cut} is sharded, but the shape has length {len(shape)}"
        reader.note(f"{path}.shape", shape, message, "correct shape or partition_dim")
    for index, size in enumerate(shape):
        if isinstance(size, (list, tuple)) and index != cut:
            message = f"a nested list is legal only at the sharded dimension, which is {cut}"
            reader.note(f"{path}.shape[{index}]", size, message, "correct shape or partition_dim")


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind_of(value: object) -> str:
    names = ((bool, "a bool"), (int, "an integer"), (float, "a float"), (str, "a string"), (dict, "an object"))
    return next((name for kind, name in names if isinstance(value, kind)), f"a {type(value).__name__}")


_READERS: dict[FieldKind, Callable[[Reader, Field, object, str], object]] = {
    FieldKind.SIZE: _size,
    FieldKind.COUNT: _count,
    FieldKind.BOOL: _bool,
    FieldKind.CHOICE: _choice,
    FieldKind.WORD: _choice,
    FieldKind.DTYPE: _dtype,
    FieldKind.STRINGS: _strings,
    FieldKind.PATTERNS: _patterns,
    FieldKind.SHAPE: _shape,
    FieldKind.TUPLE: _tuple,
    FieldKind.GROUP: _group,
    FieldKind.OBJECT: _object,
    FieldKind.OBJECTS: _objects,
    FieldKind.FORBIDDEN: _forbidden,
}
