"""The `tensor_parallel` section as data: every field with its kind, its default and its purpose.

The reader (`values`) and the JSON Schema (`schema`) both use this table, so they can't drift apart. It lists
what DeepSpeed 0.19.8 accepts in the section. `null` and `"auto"` are legal for every field (D3).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["BLOCK_OF", "LAYER_SPEC", "PARTITION_CONFIG", "SECTION", "TP", "Field", "FieldKind", "all_names", "named"]


class FieldKind(str, Enum):
    """The kind of value that a field may hold."""

    SIZE = "size"  # any integer: the decision checks its value, not the reader (SIZE_INVALID)
    COUNT = "count"  # an integer of at least `minimum`
    BOOL = "bool"
    CHOICE = "choice"  # one of `choices`, in any case
    WORD = "word"  # one of `choices`, exactly
    DTYPE = "dtype"  # D8
    STRINGS = "strings"  # a list of non-empty strings
    PATTERNS = "patterns"  # a list of at least one regular expression
    SHAPE = "shape"  # integers, at most one -1 (to infer), at most one nested list of sizes
    TUPLE = "tuple"  # a list or tuple of anything
    GROUP = "group"  # a process group, or a list of ranks
    OBJECT = "object"  # `fields`
    OBJECTS = "objects"  # a list of objects with `fields`, which are layer specs
    FORBIDDEN = "forbidden"  # a known key that is malformed when given: `fix` names its right place


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its name, its alias, its kind, its description for users, and its legal values."""

    name: str
    kind: FieldKind
    doc: str
    alias: str | None = None
    default: object = None
    choices: tuple[str, ...] = ()
    minimum: int = 0
    fields: tuple[Field, ...] = ()
    required: bool = False
    fix: str = ""


LAYER_SPEC = (
    Field(
        "patterns",
        FieldKind.PATTERNS,
        "Regular expressions, matched at the start of a parameter's full name. The first spec that matches is used.",
        required=True,
    ),
    Field(
        "partition_type",
        FieldKind.CHOICE,
        "How the layers are sharded: column (output features), row (input features), or skip (replicated).",
        default="column",
        choices=("column", "row", "skip"),
    ),
    Field(
        "shape",
        FieldKind.SHAPE,
        "The weight's logical shape before sharding. -1 stands for one size to infer; a nested list, at "
        "partition_dim only, for packed parts of unequal size.",
    ),
    Field(
        "partition_dim", FieldKind.COUNT, "The dimension of `shape` that is sharded; by default 0 for column, else 1."
    ),
    Field("model_types", FieldKind.STRINGS, "The model types that the spec is for; absent means all of them."),
    Field("gather_output", FieldKind.BOOL, "Gather the output of a column layer on every rank.", default=False),
    Field(
        "grad_allreduce",
        FieldKind.BOOL,
        "For skip: all-reduce the gradient of the replicated weight over the tensor-parallel group.",
        default=False,
    ),
)

PARTITION_CONFIG = (
    Field(
        "use_default_specs",
        FieldKind.BOOL,
        "Use the preset's layer specs for the layers that these do not match.",
        default=True,
    ),
    Field(
        "layer_specs",
        FieldKind.OBJECTS,
        "How the layers are sharded; the first spec that matches a layer is used.",
        default=(),
        fields=LAYER_SPEC,
    ),
    Field(
        "strict_mode", FieldKind.BOOL, "Refuse a model that has a linear layer which no spec matches.", default=False
    ),
    Field(
        "lm_head_patterns",
        FieldKind.STRINGS,
        "The names of language-model heads: the last part of the module's full name.",
        default=("lm_head", "embed_out"),
    ),
    Field("embedding_partition_dim", FieldKind.COUNT, "The dimension along which embeddings are sharded.", default=1),
    Field(
        "tp_size",
        FieldKind.COUNT,
        "Repeats tensor_parallel.autotp_size and must agree with it; it does not set the size.",
        minimum=1,
    ),
)

TP = (
    Field(
        "tp_size",
        FieldKind.SIZE,
        "Another name of autotp_size (D5): the tensor-parallel size, in ranks. Both must agree.",
    ),
    Field("tp_grain_size", FieldKind.COUNT, "Shards are multiples of this many features.", default=1, minimum=1),
    Field(
        "mpu",
        FieldKind.FORBIDDEN,
        "Malformed when given (D11): an mpu is passed to initialize.",
        fix="take mpu out of the config and pass it to initialize(mpu=...)",
    ),
    Field("tp_group", FieldKind.GROUP, "The tensor-parallel process group; in a file, a list of ranks."),
)

SECTION = (
    Field(
        "autotp_size",
        FieldKind.SIZE,
        "The tensor-parallel size, in ranks. 0 with no other size switches the section off (D2).",
    ),
    Field("dtype", FieldKind.DTYPE, "The data type of the model's parameters (D8)."),
    Field("tp_overlap_comm", FieldKind.BOOL, "Overlap all-reduces with computation.", default=False),
    Field(
        "tp",
        FieldKind.OBJECT,
        "Size and group under their alternative names.",
        alias="tensor_parallel",
        fields=TP,
    ),
    Field("partition_config", FieldKind.OBJECT, "How the layers are sharded.", fields=PARTITION_CONFIG),
    Field(
        "preset_model",
        FieldKind.CHOICE,
        "A built-in set of layer specs.",
        choices=("llama", "bloom", "chatglm", "mixtral", "deepseek_v2", "qwen2", "phi3"),
    ),
    Field("keep_module_on_host", FieldKind.BOOL, "Keep parameters in host memory while they load.", default=False),
    Field(
        "injection_policy_tuple",
        FieldKind.TUPLE,
        "The layers whose outputs are all-reduced: names of layers, or classes with names of their layers.",
    ),
    Field(
        "replace_with_kernel_inject",
        FieldKind.BOOL,
        "Replace layers by inference kernels.",
        alias="kernel_inject",
        default=False,
    ),
    Field(
        "vocab_parallel_lm_head",
        FieldKind.BOOL,
        "true: the head must be vocab-parallel; false: it must not be; absent: the plan decides.",
    ),
    Field(
        "vocab_parallel_ce_backend",
        FieldKind.WORD,
        "The implementation of cross-entropy over a sharded vocabulary.",
        default="torch",
        choices=("torch", "liger"),
    ),
)

# The path of each object of the section: an error for a misplaced key names the right one.
BLOCK_OF = (
    ("tensor_parallel", SECTION),
    ("tensor_parallel.tp", TP),
    ("tensor_parallel.partition_config", PARTITION_CONFIG),
    ("tensor_parallel.partition_config.layer_specs[]", LAYER_SPEC),
)


def named(fields: tuple[Field, ...]) -> dict[str, Field]:
    """Return the fields by each of their names."""
    return {name: field for field in fields for name in all_names(field)}


def all_names(field: Field) -> tuple[str, ...]:
    """Return the names of a field: its own first, then its alias."""
    return (field.name,) if field.alias is None else (field.name, field.alias)
