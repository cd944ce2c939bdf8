"""The JSON Schema of one vector, built from the vocabulary."""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

from tpinit.spec.vocabulary import DType, Outcome, Source, ViolationCode

__all__ = ["SCHEMA"]

Schema: TypeAlias = "dict[str, object]"

_INTEGER: Schema = {"type": "integer"}
_RANKS: Schema = {"type": "integer", "minimum": 1}
_HANDLE: Schema = {"type": "string", "pattern": "^g[1-9][0-9]*$"}
_NULL: Schema = {"type": "null"}


def _one_of(members: type[Enum] | tuple[Enum, ...]) -> Schema:
    return {"enum": [member.value for member in members]}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [_NULL, schema]}


def _object(properties: Schema, says: str = "") -> Schema:
    closed: Schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return ({"description": says} if says else {}) | closed


def _effective(value: Schema) -> Schema:
    return _object({"value": _or_null(value), "source": _or_null(_one_of(Source))})


_INPUT = _object(
    {
        "world_size": _RANKS,
        "groups": {
            "description": "Handle to size in ranks. The same handle is the same object.",
            "type": "object",
            "propertyNames": _HANDLE,
            "additionalProperties": _RANKS,
        },
        "call": _or_null(_object({"tp_size": _INTEGER, "dtype": _one_of(DType), "tp_group": _or_null(_HANDLE)})),
        "section": _or_null(
            _object(
                {
                    "autotp_size": _or_null(_INTEGER),
                    "tp_size": _or_null(_INTEGER),
                    "dtype": _or_null(_one_of(DType)),
                    "tp_group": _or_null(_HANDLE),
                },
                "The enabled or disabled tensor_parallel section; null inside it is an absent field.",
            )
        ),
        "precision": _or_null(_one_of((DType.FP16, DType.BF16))),
        "mpu": _or_null(_object({"tp_group": _HANDLE})),
        "mesh": _or_null(_HANDLE),
    },
    "What was given. null is not given.",
)

_EXPECTED = _object(
    {
        "row": {"type": "integer", "minimum": 1, "maximum": 12},
        "outcome": _one_of(Outcome),
        "violations": {
            "description": "All that hold, in canonical order; empty unless the outcome is error.",
            "type": "array",
            "items": _one_of(ViolationCode),
            "uniqueItems": True,
        },
        "tp_size": _effective(_INTEGER),
        "dtype": _effective(_one_of(DType)),
        "tp_group": _effective(_HANDLE),
        "section_disabled": {"type": "boolean"},
    },
    "The contract's answer. Value and source are null where there is none, as in every error.",
)

SCHEMA: Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A conformance vector of tpinit",
    **_object(
        {
            "id": {"description": "Permanent.", "type": "string", "pattern": "^r[01][0-9]-[a-z0-9-]+$"},
            "row": {"type": "integer", "minimum": 1, "maximum": 12},
            "clauses": {
                "description": "Clauses of the contract: P1-P7, D1-D11, or 4 for the table of violations.",
                "type": "array",
                "items": {"type": "string", "pattern": "^(P[1-7]|D([1-9]|1[01])|4)$"},
                "minItems": 1,
                "uniqueItems": True,
            },
            "why": _object(
                {
                    "flag": {"type": "string", "pattern": "^[A-Z][A-Z_]+$"},
                    "effect": {"description": "What goes wrong where this is got wrong.", "type": "string"},
                }
            ),
            "smoke": {"description": "Whether the minimal subset has it.", "type": "boolean"},
            "input": _INPUT,
            "expected": _EXPECTED,
        }
    ),
}
