"""The findings behind the departures: each with its kind, the clause that it breaks, and a script that shows it.

A departure belongs to the first finding whose pattern matches its line. A departure that matches no finding is listed
as unexplained and makes the run fail.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from studies.deepspeed.judge import Departure, DepartureKind

__all__ = ["DEEPSPEED", "StudiedCase", "Finding", "FindingEvidence", "sort"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `pattern` is searched in `id | aspect | expected | observed`; `script` is in docs/reproductions."""

    slug: str
    kind: DepartureKind
    title: str
    breaks: str
    ranks: int
    script: str
    pattern: str


@dataclass(frozen=True, slots=True)
class StudiedCase:
    """One case of the study (a vector, a catalogue entry, a program) with its departures; `answered`: not skipped."""

    id: str
    title: str
    departures: Sequence[Departure] = ()
    answered: bool = True
    reason: str = ""


@dataclass(slots=True)
class FindingEvidence:
    """A finding with the cases that show it."""

    finding: Finding
    cases: list[tuple[StudiedCase, Departure]] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        """The distinct ids of the cases."""
        return list(dict.fromkeys(case.id for case, _ in self.cases))


_W, _H, _C, _I, _E, _L, _D = DepartureKind

DEEPSPEED: tuple[Finding, ...] = (
    Finding(
        "config-changed",
        _L,
        "`initialize` writes to the caller's config object, even if it then raises",
        "D10",
        2,
        "config_changed.py",
        r"\| the caller's config \|",
    ),
    Finding(
        "second-model-mpu",
        _W,
        "A second model with an mpu changes the gradient averaging of the first, sharded model: gradients of "
        "different shards are averaged",
        "D9: calls for different models are independent",
        4,
        "second_mpu.py",
        r"^second-mpu",
    ),
    Finding(
        "two-models-size",
        _W,
        "The second model of a process is sharded over the group of the first, whatever its own `autotp_size` is. "
        "The check of the first batch refuses data that is right for the second model; if the first batch passes "
        "the check, training goes wrong",
        "D9: calls for different models are independent",
        4,
        "two_models.py",
        r"^two-models-[24]",
    ),
    Finding(
        "mesh-tuple",
        _W,
        "`mesh_param=(4, 1)` with `autotp_size: 2` averages gradients of different shards; the two settings are "
        "not compared",
        "P3 (a disagreement on group size is an error)",
        4,
        "mesh.py",
        r"^mesh-tuple",
    ),
    Finding(
        "mpu-group-ignored",
        _W,
        "The mpu's tensor-parallel group is ignored: parameters are always sharded over contiguous ranks. The "
        "check of the first batch refuses data that is right for the mpu; if the first batch passes the check, "
        "training goes wrong",
        "rows 4, 6 and 8: the TP group is the mpu's",
        4,
        "mpu_group.py",
        r"^(row-0[468]|mpu-crossed|r0[468]-init).*\| (sharding group|averaging group|input-check group|numbers) \|",
    ),
    Finding(
        "group-not-printable",
        _C,
        "Any `tp_group`, from the call or the config, leads to a TypeError on rank 0, which prints its config as "
        "JSON; the other ranks return an engine",
        "rows 9 and 11, and rows 3, 4, 7 and 8 with a config group: none of them works",
        4,
        "tp_group.py",
        r"ProcessGroup is not JSON serializable",
    ),
    Finding(
        "dtype-not-printable",
        _C,
        "A torch dtype in `tensor_parallel.dtype` leads to a TypeError on rank 0, which prints its config as "
        "JSON; the other ranks return an engine",
        "D8",
        2,
        "section_dtype.py",
        r"dtype is not JSON serializable",
    ),
    Finding(
        "size-not-dividing",
        _C,
        "A size that does not divide the world size gives some ranks an engine and the others an IndexError",
        "SIZE_NOT_DIVIDING_WORLD",
        4,
        "not_dividing.py",
        r"IndexError",
    ),
    Finding(
        "size-beyond-world",
        _C,
        "A size larger than the world size raises an AssertionError without a message",
        "SIZE_NOT_DIVIDING_WORLD",
        2,
        "beyond_world.py",
        r"AssertionError: \(no message\)",
    ),
    Finding(
        "call-size-invalid",
        _C,
        "An invalid size in `tp_model_init` (0, negative, a string, a float, a bool) fails later with an error of "
        "arithmetic, of a tensor's shape or of memory",
        "SIZE_INVALID, D7",
        2,
        "negative_call.py",
        r"ZeroDivisionError|invalid shape dimension|unsupported operand type|and strides .* don't match|CPUAllocator",
    ),
    Finding(
        "auto",
        _C,
        '`autotp_size: "auto"` is compared with 0 (TypeError); with a call it is a conflict, although it means '
        "that the value is absent",
        "D3",
        2,
        "auto.py",
        r"^(autotp-size-auto|call-2-autotp-auto)",
    ),
    Finding(
        "section-no-object",
        _C,
        "A section that is null or not an object raises an AttributeError",
        "D1, D8",
        2,
        "null.py",
        r"AttributeError: '\w+' object has no attribute 'get'",
    ),
    Finding(
        "size-of-other-type",
        _C,
        "A string or a list as `autotp_size` raises a TypeError from a comparison, which names no key",
        "D7",
        2,
        "loose_values.py",
        r"^autotp-size-.*not supported between instances",
    ),
    Finding(
        "call-dtype-ignored",
        _I,
        "The dtype of `tp_model_init` is ignored: without a matching bf16 or fp16 section the parameters keep "
        "their dtype",
        "rows 6 to 8: dtype from the call where the config has none",
        2,
        "call_dtype.py",
        r"\| dtype \|",
    ),
    Finding(
        "nested-size-ignored",
        _I,
        "`tp.tp_size` alone enables nothing: the model trains unsharded, without an error or a warning",
        "D5",
        2,
        "nested_size.py",
        r"\| tp_size \| \d+ \| parameters sharded 1-way$",
    ),
    Finding(
        "batch",
        _I,
        "`train_batch_size` is not kept: without an mpu the tensor-parallel ranks count as data-parallel ranks, "
        "so an update uses `train_batch_size / autotp_size` samples (with an mpu it is kept)",
        "DeepSpeed's own definition, the number of samples per update (DeepSpeed also defines it as micro batch x "
        "accumulation steps x number of GPUs; the two differ here)",
        4,
        "batch_size.py",
        r"\| batch arithmetic \|",
    ),
    Finding(
        "sharded-then-whole",
        _L,
        "After a sharded model, a model that is not sharded can't be initialized in the same process (AttributeError)",
        "D9: calls for different models are independent",
        2,
        "sharded_then_whole.py",
        r"^sharded-then-whole|get_model_parallel_rank",
    ),
    Finding(
        "record-outlives",
        _L,
        "The record of `tp_model_init` belongs to the process and stays after its use: it shards, or makes fail, "
        "later models without a call",
        "D9",
        2,
        "record_outlives.py",
        r"^(record-outlives|config-reused|failed-call-then-good)",
    ),
    Finding(
        "calls-compared",
        _E,
        "Two calls are compared across models, and their groups by size only: two models can't have two sizes, "
        "and another group of the same size is accepted",
        "D9",
        4,
        "two_calls.py",
        r"^(call-twice-group|two-models-call)",
    ),
    Finding(
        "section-dtype-refused",
        _E,
        "`tensor_parallel.dtype` accepts no name of a dtype (`bf16`, `float32`), although the merge with a call "
        "reads `fp16`, `bf16` and `fp32`",
        "D8",
        2,
        "section_dtype.py",
        r"TPTrainingConfig dtype Input should be an instance of dtype",
    ),
    Finding(
        "row-1",
        _D,
        "Row 1 (nothing given) is not an error but plain data parallelism, which is DeepSpeed without AutoTP",
        "row 1, NO_TP_INTENT",
        2,
        "row_1.py",
        r"NO_TP_INTENT \| no error: plain data parallelism",
    ),
    Finding(
        "row-5",
        _E,
        "Row 5 (a call alone) is not an error: a group is created, deliberately, for the Hugging Face Trainer",
        "row 5, NO_GROUP_SOURCE",
        2,
        "row_5.py",
        r"NO_GROUP_SOURCE.* \| no error",
    ),
    Finding(
        "call-dtype-unchecked",
        _E,
        "`tp_model_init` accepts any dtype, even one that does not exist",
        "D8",
        2,
        "call_dtype_nonsense.py",
        r"^call-dtype-.*\| no error",
    ),
    Finding(
        "size-below-one",
        _E,
        "A negative `autotp_size`, a section without a size, and any invalid `tp.tp_size` mean plain data "
        "parallelism instead of an error",
        "SIZE_INVALID, SIZE_MISSING, D5",
        2,
        "sizes_below_one.py",
        r"(SIZE_INVALID|SIZE_MISSING|SIZE_NOT_DIVIDING_WORLD).*\| no error: plain data parallelism",
    ),
    Finding(
        "loose-types",
        _E,
        'Values of a wrong type are accepted silently: `2.0` and `true` as sizes, `"2"` in `tp`, `"true"` and `1` '
        "as `bf16.enabled`",
        "D7, D8",
        2,
        "loose_values.py",
        r"error that names (autotp_size|tp_size|enabled) \| no error",
    ),
    Finding(
        "mpu-size-unchecked",
        _E,
        "The size of the mpu's group is not compared with `autotp_size` or with the size of the call",
        "GROUP_SIZE_MISMATCH",
        4,
        "mpu_size.py",
        r"GROUP_SIZE_MISMATCH.*\| no error",
    ),
    Finding(
        "nested-size-1",
        _E,
        "`tp.tp_size` is compared with `autotp_size` only if it is not 1, and only if the model is sharded",
        "SIZE_MISMATCH, D5",
        2,
        "nested_one.py",
        r"SIZE_MISMATCH.*\| no error",
    ),
    Finding(
        "tp-mpu",
        _E,
        "`tp.mpu` accepts any value, and nothing reads it",
        "D11",
        2,
        "mpu_inside.py",
        r"^section-mpu-inside",
    ),
    Finding(
        "null-field",
        _E,
        "A null field (`dtype`, `autotp_size`, `tp`, `tp_size`) is a validation error instead of an absent field",
        "D1, D3",
        2,
        "section_dtype.py",
        r"ValidationError.*input_value=None",
    ),
    Finding(
        "mesh-torch",
        _C,
        "A torch DeviceMesh as `mesh_param` raises a TypeError: DeepSpeed's meshes are tuples without a tensor- "
        "parallel dimension",
        "D4, P6",
        4,
        "mesh.py",
        r"^mesh-torch",
    ),
)


def sort(
    cases: Sequence[StudiedCase], findings: Sequence[Finding]
) -> tuple[list[FindingEvidence], list[tuple[StudiedCase, Departure]]]:
    """Give every departure to the first finding that it matches; return the findings with cases, and what is left."""
    found: Mapping[str, FindingEvidence] = {finding.slug: FindingEvidence(finding) for finding in findings}
    left = []
    for case in cases:
        for departure in case.departures:
            line = f"{case.id} | {departure.aspect.value} | {departure.expected} | {departure.observed}"
            finding = next((finding for finding in findings if re.search(finding.pattern, line)), None)
            if finding is None:
                left.append((case, departure))
            else:
                found[finding.slug].cases.append((case, departure))
    worst_first = sorted(found.values(), key=lambda each: list(DepartureKind).index(each.finding.kind))
    return [each for each in worst_first if each.cases], left
