"""Makes the JSON Schema of the section, for editors, from the table (`fields`) that the reader uses.

`tensor_parallel.schema.json` (the section) and `ds_config.schema.json` (a whole config, to attach to a
ds_config.json) in this folder are shipped; `python -m tpinit.reference.schema` rewrites both.

A schema describes the contents of a JSON file. The reader also checks what JSON Schema can't express: that
an integral float (2.0) is not a size (D7), that a pattern is a regular expression of Python's, how fields
relate (partition_dim to shape, a repeated tp_size to autotp_size), and misspelled keys outside the section.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tpinit.reference.fields import SECTION, Field, FieldKind, all_names
from tpinit.reference.spellings import AUTO, DTYPE_SPELLINGS

__all__ = ["config_schema", "section_schema", "shipped_files", "write"]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_ABSENT: dict[str, object] = {"enum": [None, AUTO]}
_STRINGS: dict[str, object] = {"type": "array", "items": {"type": "string", "minLength": 1}}
_SIZE: dict[str, object] = {"type": "integer", "minimum": 1}


def section_schema() -> dict[str, object]:
    """Return the schema of the value of `tensor_parallel`."""
    return {
        "$schema": _DRAFT,
        "title": "The tensor_parallel section of a DeepSpeed config",
        **_object_of(SECTION),
    }


def config_schema() -> dict[str, object]:
    """Return a schema of the whole config: the section, the precision blocks, and any other keys."""
    return {
        "$schema": _DRAFT,
        "title": "A DeepSpeed config with a tensor_parallel section",
        "type": "object",
        "properties": {
            "tensor_parallel": {
                "description": "Tensor parallelism. Absent or null means no section (D1).",
                "anyOf": [{"type": "null"}, {"$ref": "#/$defs/tensor_parallel"}],
            },
            "bf16": {"$ref": "#/$defs/precision"},
            "fp16": {"$ref": "#/$defs/precision"},
            "bfloat16": {"$ref": "#/$defs/precision", "deprecated": True, "description": "The old name of bf16."},
        },
        "not": {
            "anyOf": [_both(("bf16", "bfloat16"), {"type": "null"}), _enabled_twice("bf16"), _enabled_twice("bfloat16")]
        },
        "$defs": {
            "tensor_parallel": {"title": "The tensor_parallel section", **_object_of(SECTION)},
            "precision": {
                "description": "One precision for the whole model; at most one block is enabled (D6).",
                "type": ["object", "null"],
                "properties": {"enabled": {"enum": [True, False, AUTO, None], "default": False}},
            },
        },
    }


def shipped_files() -> dict[str, str]:
    """Return the text of each shipped schema, by the name of its file."""
    schemas = {"tensor_parallel.schema.json": section_schema(), "ds_config.schema.json": config_schema()}
    return {name: json.dumps(schema, indent=2) + "\n" for name, schema in schemas.items()}


def write(folder: Path) -> None:
    """Write the shipped schemas into a folder."""
    for name, text in shipped_files().items():
        (folder / name).write_text(text, encoding="utf-8")


# --- one schema per kind --------------------------------------------------------------------------


def _object_of(fields: tuple[Field, ...]) -> dict[str, object]:
    properties: dict[str, object] = {}
    for field in fields:
        for name in all_names(field):
            properties[name] = _property(field, name)
    schema: dict[str, object] = {"type": "object", "additionalProperties": False, "properties": properties}
    required = [field.name for field in fields if field.required]
    if required:
        schema["required"] = required
        schema["properties"] = {**properties, **{name: _required(properties[name]) for name in required}}
    twice = [_both(names, _ABSENT) for field in fields if len(names := all_names(field)) == 2]
    if twice:
        schema["not"] = {"anyOf": twice}
    return schema


def _property(field: Field, name: str) -> dict[str, object]:
    doc = field.doc if name == field.name else f"Another name of {field.name}. {field.doc}"
    schema: dict[str, object] = {"description": doc}
    if field.default is not None:
        schema["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
    return {**schema, "anyOf": [*_KINDS[field.kind](field), _ABSENT]}


def _required(schema: object) -> dict[str, object]:
    """Return a property's schema without the values that mean absent (D3)."""
    assert isinstance(schema, dict)
    return {**schema, "anyOf": [case for case in schema["anyOf"] if case is not _ABSENT]}


def _both(names: tuple[str, ...], absent: dict[str, object]) -> dict[str, object]:
    """Return a schema that holds when both names are given."""
    return {"required": list(names), "properties": {name: {"not": absent} for name in names}}


def _enabled_twice(bf16: str) -> dict[str, object]:
    enabled = {"type": "object", "required": ["enabled"], "properties": {"enabled": {"const": True}}}
    return {"required": [bf16, "fp16"], "properties": {bf16: enabled, "fp16": enabled}}


def _in_any_case(word: str) -> str:
    letters = (f"[{letter.upper()}{letter}]" if letter.isalpha() else letter for letter in word)
    return "".join(letters)


def _choice(field: Field) -> list[dict[str, object]]:
    # The enum comes first, so that editors offer its values.
    pattern = "|".join(_in_any_case(choice) for choice in field.choices)
    return [{"enum": list(field.choices)}, {"type": "string", "pattern": f"^({pattern})$"}]


def _shape(_: Field) -> list[dict[str, object]]:
    nested: dict[str, object] = {"type": "array", "items": _SIZE, "minItems": 1}
    return [
        {
            "type": "array",
            "minItems": 1,
            "items": {"anyOf": [_SIZE, {"const": -1}, nested]},
            "allOf": [
                {"contains": {"const": -1}, "minContains": 0, "maxContains": 1},
                {"contains": {"type": "array"}, "minContains": 0, "maxContains": 1},
            ],
        }
    ]


def _group(_: Field) -> list[dict[str, object]]:
    ranks: dict[str, object] = {
        "type": "array",
        "minItems": 1,
        "uniqueItems": True,
        "items": {"type": "integer", "minimum": 0},
    }
    return [ranks]


_KINDS: dict[FieldKind, Callable[[Field], list[dict[str, object]]]] = {
    FieldKind.SIZE: lambda _: [{"type": "integer"}],
    FieldKind.COUNT: lambda field: [{"type": "integer", "minimum": field.minimum}],
    FieldKind.BOOL: lambda _: [{"type": "boolean"}],
    FieldKind.CHOICE: _choice,
    FieldKind.WORD: lambda field: [{"enum": list(field.choices)}],
    FieldKind.DTYPE: lambda _: [{"enum": list(DTYPE_SPELLINGS)}],
    FieldKind.STRINGS: lambda _: [_STRINGS],
    FieldKind.PATTERNS: lambda _: [{**_STRINGS, "minItems": 1}],
    FieldKind.SHAPE: _shape,
    FieldKind.TUPLE: lambda _: [{"type": "array"}],
    FieldKind.GROUP: _group,
    FieldKind.OBJECT: lambda field: [_object_of(field.fields)],
    FieldKind.OBJECTS: lambda field: [{"type": "array", "items": _object_of(field.fields)}],
    FieldKind.FORBIDDEN: lambda _: [],
}


if __name__ == "__main__":
    write(Path(__file__).parent)
