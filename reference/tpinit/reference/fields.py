"""The `tensor_parallel` section as data: every field, its kind, its default and what it is for.

The reader (`config`) and the JSON Schema (`schema`) are both made from this table, so they can't drift
apart. It lists what DeepSpeed 0.19.8 accepts there. `null` and `"auto"` are legal for every field (D3).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["BLOCK_OF", "LAYER_SPEC", "PARTITION_CONFIG", "SECTION", "TP", "Field", "Kind", "all_names", "named"]


class Kind(str, Enum):
    """What a field may hold."""

    SIZE = "size"  # any integer: the decision, not the reader, judges it (SIZE_INVALID)
    COUNT = "count"  # an integer of at least `minimum`
    BOOL = "bool"
    CHOICE = "choice"  # one of `choices`, in any case
    WORD = "word"  # one of `choices`, exactly
    DTYPE = "dtype"  # D8
    STRINGS = "strings"  # a list of strings that are not empty
    PATTERNS = "patterns"  # a list of at least one regular expression
    SHAPE = "shape"  # integers, -1 for one to infer, one nested list of sizes
    TUPLE = "tuple"  # a list or tuple of anything
    GROUP = "group"  # a process group, or a list of ranks
    OBJECT = "object"  # `fields`
    OBJECTS = "objects"  # a list of objects with `fields`, which are layer specs
    FORBIDDEN = "forbidden"  # known, and malformed when given: `fix` says where it belongs


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its name, the other name that it goes by, its kind, and its words for users."""

    name: str
    kind: Kind
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
        Kind.PATTERNS,
        "Regular expressions, matched at the start of a parameter's full name. The first spec that matches is used.",
        required=True,
    ),
    Field(
        "partition_type",
        Kind.CHOICE,
        "How the layers are cut: column (output features), row (input features), or skip (kept whole).",
        default="column",
        choices=("column", "row", "skip"),
    ),
    Field(
        "shape",
        Kind.SHAPE,
        "The weight's logical shape before it is cut. -1 stands for one size to infer; a nested list, at "
        "partition_dim only, for packed parts of unequal size.",
    ),
    Field("partition_dim", Kind.COUNT, "The dimension of `shape` that is cut; by default 0 for column, else 1."),
    Field("model_types", Kind.STRINGS, "The model types that the spec is for; absent means all of them."),
    Field("gather_output", Kind.BOOL, "Gather a column layer's output on every rank.", default=False),
    Field(
        "grad_allreduce",
        Kind.BOOL,
        "For skip: sum the gradients of the whole weight over the tensor-parallel group.",
        default=False,
    ),
)

PARTITION_CONFIG = (
    Field(
        "use_default_specs",
        Kind.BOOL,
        "Fall back on the preset's layer specs for what these do not match.",
        default=True,
    ),
    Field(
        "layer_specs",
        Kind.OBJECTS,
        "Which layers are cut how, in order of priority.",
        default=(),
        fields=LAYER_SPEC,
    ),
    Field("strict_mode", Kind.BOOL, "Refuse a model with a linear layer that no spec matches.", default=False),
    Field(
        "lm_head_patterns",
        Kind.STRINGS,
        "The last names of the modules that are the language-model head.",
        default=("lm_head", "embed_out"),
    ),
    Field("embedding_partition_dim", Kind.COUNT, "The dimension along which embeddings are cut.", default=1),
    Field(
        "tp_size",
        Kind.COUNT,
        "Repeats tensor_parallel.autotp_size; it decides nothing, and must agree with the size that does.",
        minimum=1,
    ),
)

TP = (
    Field(
        "tp_size",
        Kind.SIZE,
        "Another name of autotp_size (D5): the tensor-parallel size, in ranks. Both must agree.",
    ),
    Field("tp_grain_size", Kind.COUNT, "Shards are multiples of this many features.", default=1, minimum=1),
    Field(
        "mpu",
        Kind.FORBIDDEN,
        "Malformed when given (D11): an mpu is passed to initialize.",
        fix="take mpu out of the config and pass it to initialize(mpu=...)",
    ),
    Field("tp_group", Kind.GROUP, "The tensor-parallel process group; in a file, a list of ranks."),
)

SECTION = (
    Field(
        "autotp_size",
        Kind.SIZE,
        "The tensor-parallel size, in ranks. 0 with no other size switches the section off (D2).",
    ),
    Field("dtype", Kind.DTYPE, "The data type of the model's parameters (D8)."),
    Field("tp_overlap_comm", Kind.BOOL, "Overlap all-reduces with computation.", default=False),
    Field(
        "tp",
        Kind.OBJECT,
        "Size and group by their other names.",
        alias="tensor_parallel",
        fields=TP,
    ),
    Field("partition_config", Kind.OBJECT, "Which layers are cut how.", fields=PARTITION_CONFIG),
    Field(
        "preset_model",
        Kind.CHOICE,
        "A built-in set of layer specs.",
        choices=("llama", "bloom", "chatglm", "mixtral", "deepseek_v2", "qwen2", "phi3"),
    ),
    Field("keep_module_on_host", Kind.BOOL, "Keep parameters in host memory while they load.", default=False),
    Field(
        "injection_policy_tuple",
        Kind.TUPLE,
        "The layers after which outputs are summed: their names, or classes with theirs.",
    ),
    Field(
        "replace_with_kernel_inject",
        Kind.BOOL,
        "Replace layers by inference kernels.",
        alias="kernel_inject",
        default=False,
    ),
    Field(
        "vocab_parallel_lm_head",
        Kind.BOOL,
        "true: the head must be cut along the vocabulary; false: it must not; absent: as the model's plan says.",
    ),
    Field(
        "vocab_parallel_ce_backend",
        Kind.WORD,
        "What computes the cross-entropy of a cut vocabulary.",
        default="torch",
        choices=("torch", "liger"),
    ),
)

# Where each object of the section stands, for errors that look for a misplaced key.
BLOCK_OF = (
    ("tensor_parallel", SECTION),
    ("tensor_parallel.tp", TP),
    ("tensor_parallel.partition_config", PARTITION_CONFIG),
    ("tensor_parallel.partition_config.layer_specs[]", LAYER_SPEC),
)


def named(fields: tuple[Field, ...]) -> dict[str, Field]:
    """Return the fields by every name they go by."""
    return {name: field for field in fields for name in all_names(field)}


def all_names(field: Field) -> tuple[str, ...]:
    """Return the names a field goes by: its own first, then its alias."""
    return (field.name,) if field.alias is None else (field.name, field.alias)
