"""A catalogue of inputs as users write them: configs, calls, mpus and meshes beyond the vectors.

It holds no expected values: the reference reads the same input and decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tpinit.conformance.adapters.deepspeed.jobs import (
    BASE,
    Partition,
    blocks,
    observations,
    orthogonal,
    strides,
)
from tpinit.reference.errors import ConfigError
from tpinit.reference.objects import CallArgs, Resolver
from tpinit.spec.vocabulary import Decision, Outcome

from studies.deepspeed.judge import Expected

__all__ = ["CatalogueEntry", "entries", "expected_of", "job_of_entry", "rows"]

_WATCH = ("numbers", "sharding", "averaging", "check")


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One input as a user writes it. `section` and `call` hold JSON with `$group` and `$dtype` for objects.

    `layout` gives the ranks of the group "g"; with `mpu` an mpu over it is passed. `more` are further settings of the
    config, `text` passes the config as base64 text, `samples` is the required number of samples per update. `only`
    names the one implementation that accepts the input. With `warm` all ranks share the first batch, so that a check of
    the first batch passes.
    """

    id: str
    title: str
    world: int = 2
    section: Any = "absent"
    call: Mapping[str, Any] | None = None
    layout: Partition | None = None
    mpu: bool = False
    mesh: Any = None
    more: Mapping[str, Any] = field(default_factory=dict)
    text: bool = False
    samples: int | None = None
    only: str | None = None
    warm: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """The whole config, as JSON."""
        section = {} if self.section == "absent" else {"tensor_parallel": self.section}
        return {**BASE, **section, **self.more}


class _Handle:
    """A group for the reference: an object with a size in ranks."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks

    def size(self) -> int:
        return self._ranks


class _Mpu:
    def __init__(self, group: _Handle) -> None:
        self.get_model_parallel_group = lambda: group


def _objects(given: Any, handle: _Handle | None) -> Any:
    if isinstance(given, Mapping):
        if "$group" in given:
            return handle
        if "$dtype" in given:
            return {"fp64": "torch.float64"}.get(given["$dtype"], f"torch.{given['$dtype']}")
        return {key: _objects(value, handle) for key, value in given.items()}
    return [_objects(value, handle) for value in given] if isinstance(given, list) else given


def decide(entry: CatalogueEntry) -> Decision:
    """Return the reference's decision. Raises ConfigError for a malformed config."""
    handle = None if entry.layout is None else _Handle(len(entry.layout[0]))
    call = None
    if entry.call is not None:
        given = _objects(entry.call, handle)
        call = CallArgs(given["tp_size"], given["dtype"], given.get("tp_group"))
    mpu = _Mpu(handle) if entry.mpu and handle is not None else None
    return Resolver(entry.world).resolve(call=call, config=_objects(entry.config, handle), mpu=mpu)


def expected_of(entry: CatalogueEntry) -> Expected:
    """Return what the contract requires of an entry."""
    try:
        decision = decide(entry)
    except ConfigError as error:
        keys = {problem.path.split(".")[-1].split("[")[0] for problem in error.problems}
        return Expected(Outcome.ERROR, malformed=True, mentions=tuple(sorted(keys)))
    codes = tuple(violation.code.value for violation in decision.violations)
    if codes:
        return Expected(Outcome.ERROR, codes)
    size, dtype = decision.tp_size.value, decision.dtype.value
    tp = None
    if size is not None:
        tp = entry.layout if decision.tp_group.value is not None else blocks(entry.world, size)
    dp = orthogonal(tp or entry.layout or [[rank] for rank in range(entry.world)])
    return Expected(
        decision.outcome,
        tp_size=size,
        dtype=dtype.value if dtype is not None else None,
        tp_groups=tp,
        dp_groups=dp,
        samples=entry.samples,
    )


def _intended(entry: CatalogueEntry, expected: Expected) -> Partition:
    """Return the TP groups that the entry's author intends: the given ones, else contiguous ones of the first size."""
    if expected.tp_groups is not None or entry.layout is not None:
        return expected.tp_groups or entry.layout or []
    section = entry.section if isinstance(entry.section, Mapping) else {}
    sizes = [section.get("autotp_size"), entry.call and entry.call["tp_size"], entry.mesh and 1]
    size = next((int(size) for size in sizes if isinstance(size, (int, float)) and size >= 1), 1)
    return blocks(entry.world, size if entry.world % size == 0 else 1)


def job_of_entry(entry: CatalogueEntry, timeout: float) -> dict[str, Any]:
    """Return the job of an entry; ranks of the same intended TP group get the same data."""
    groups: dict[str, Any] = {} if entry.layout is None else {"g": entry.layout, "d": orthogonal(entry.layout)}
    initialize: dict[str, Any] = {"op": "initialize", "model": "m", "config": "c", "mesh": entry.mesh}
    if entry.mpu:
        initialize["mpu"] = {"tp": "g", "dp": "d"}
    call = [] if entry.call is None else [{"op": "call", "model": "m", **entry.call}]
    config = {"$text": entry.config} if entry.text else entry.config
    order = ("sharding", "numbers", "averaging", "check") if entry.warm else _WATCH
    watch = observations(_intended(entry, expected_of(entry)), order)
    return {
        "id": entry.id,
        "world": entry.world,
        "groups": groups,
        "configs": {"c": config},
        "steps": [*call, initialize, *watch],
        "timeout": timeout,
    }


_FP32 = {"$dtype": "fp32"}
_BF16 = {"$dtype": "bf16"}
_G = {"$group": "g"}


def rows() -> Iterator[CatalogueEntry]:
    """Yield the twelve rows in their simplest form, in a world of 4 with contiguous and with strided groups of 2."""
    section = {"autotp_size": 2}
    call = {"tp_size": 2, "dtype": _FP32}
    facts = {
        1: (None, "absent", False),
        2: (None, "absent", True),
        3: (None, section, False),
        4: (None, section, True),
        5: (call, "absent", False),
        6: (call, "absent", True),
        7: (call, section, False),
        8: (call, section, True),
        9: ({**call, "tp_group": _G}, "absent", False),
        10: ({**call, "tp_group": _G}, "absent", True),
        11: ({**call, "tp_group": _G}, section, False),
        12: ({**call, "tp_group": _G}, section, True),
    }
    for number, (given, configured, mpu) in facts.items():
        grouped = mpu or (given is not None and "tp_group" in given)
        layouts = {"blocks": blocks(4, 2), "strides": strides(4, 2)} if grouped else {"": None}
        for name, layout in layouts.items():
            title = f"row {number}" + (f", groups {layout}" if layout else "")
            tail = f"-{name}" if name else ""
            yield CatalogueEntry(f"row-{number:02}{tail}", title, 4, configured, given, layout, mpu)


def _dtypes() -> Iterator[CatalogueEntry]:
    spellings: dict[str, Any] = {
        **{name: name for name in ("fp32", "float32", "float", "torch.float32", "fp16", "float16", "half")},
        **{name: name for name in ("bf16", "bfloat16", "torch.bfloat16", "BF16", "auto", "double", "int8", "fp8")},
        "object-fp32": _FP32,
        "object-bf16": _BF16,
        "object-fp64": {"$dtype": "fp64"},
        "null": None,
        "number": 16,
        "true": True,
        "empty-text": "",
        "list": ["bf16"],
    }
    for name, value in spellings.items():
        slug = name.lower().replace(".", "-") if name != "BF16" else "bf16-upper"
        yield CatalogueEntry(
            f"section-dtype-{slug}", f"tensor_parallel.dtype {value!r}", 2, {"autotp_size": 2, "dtype": value}
        )
    calls: dict[str, Any] = {
        "object-fp32": _FP32,
        "object-bf16": _BF16,
        "object-fp64": {"$dtype": "fp64"},
        "text-bf16": "bf16",
        "text-float": "float",
        "auto": "auto",
        "none": None,
        "nonsense": "bf61",
    }
    for name, value in calls.items():
        call = {"tp_size": 2, "dtype": value}
        yield CatalogueEntry(f"call-dtype-{name}", f"tp_model_init(dtype={value!r})", 2, {"autotp_size": 2}, call)


def _sizes() -> Iterator[CatalogueEntry]:
    sizes: dict[str, Any] = {
        "auto": "auto",
        "0": 0,
        "1": 1,
        "2": 2,
        "3": 3,
        "4": 4,
        "8": 8,
        "minus-1": -1,
        "minus-2": -2,
        "text-2": "2",
        "float-2": 2.0,
        "float-2-5": 2.5,
        "true": True,
        "null": None,
        "list": [2],
        "words": "two",
    }
    for name, value in sizes.items():
        yield CatalogueEntry(f"autotp-size-{name}", f"autotp_size {value!r}", 4, {"autotp_size": value})
        yield CatalogueEntry(f"nested-size-{name}", f"tp.tp_size {value!r} alone", 4, {"tp": {"tp_size": value}})
        call = {"tp_size": value, "dtype": _FP32}
        yield CatalogueEntry(f"call-size-{name}", f"tp_model_init(tp_size={value!r}) and an empty section", 4, {}, call)
    for name, nested in {"auto": "auto", "1": 1, "2": 2, "4": 4, "null": None, "0": 0}.items():
        section = {"autotp_size": 2, "tp": {"tp_size": nested}}
        yield CatalogueEntry(f"both-sizes-2-{name}", f"autotp_size 2 and tp.tp_size {nested!r}", 4, section)
    call = {"tp_size": 2, "dtype": _FP32}
    for name, value in {"auto": "auto", "0": 0, "4": 4, "null": None, "text-2": "2"}.items():
        title = f"autotp_size {value!r} and tp_model_init(tp_size=2)"
        yield CatalogueEntry(f"call-2-autotp-{name}", title, 4, {"autotp_size": value}, call)


def _sections() -> Iterator[CatalogueEntry]:
    call = {"tp_size": 2, "dtype": _FP32}
    shapes: dict[str, Any] = {
        "empty": {},
        "null": None,
        "list": [],
        "text": "auto",
        "true": True,
        "number": 2,
        "tp-null": {"autotp_size": 2, "tp": None},
        "tp-empty": {"autotp_size": 2, "tp": {}},
        "tp-list": {"autotp_size": 2, "tp": [2]},
        "typo": {"autotp_sise": 2},
        "upper": {"AutoTP_Size": 2},
        "size-outside": {"tp_size": 2},
        "typo-inside": {"autotp_size": 2, "tp": {"tp_sise": 2}},
        "mpu-inside": {"autotp_size": 2, "tp": {"mpu": "x"}},
        "enabled": {"enabled": True, "autotp_size": 2},
        "disabled-with-dtype": {"autotp_size": 0, "dtype": "bf16"},
    }
    for name, section in shapes.items():
        yield CatalogueEntry(f"section-{name}", f"tensor_parallel: {section!r}", 2, section)
    for name in ("empty", "null", "typo", "tp-null", "list"):
        title = f"tensor_parallel: {shapes[name]!r} and tp_model_init(tp_size=2)"
        yield CatalogueEntry(f"call-and-section-{name}", title, 2, shapes[name], call)
    yield CatalogueEntry("config-as-text", "the config as base64 text", 2, {"autotp_size": 2}, text=True)


def _precision() -> Iterator[CatalogueEntry]:
    sections: dict[str, Any] = {
        "bf16": {"bf16": {"enabled": True}},
        "bf16-auto": {"bf16": {"enabled": "auto"}},
        "bf16-off": {"bf16": {"enabled": False}},
        "bf16-empty": {"bf16": {}},
        "both": {"bf16": {"enabled": True}, "fp16": {"enabled": True}},
        "bf16-text": {"bf16": {"enabled": "true"}},
        "bf16-one": {"bf16": {"enabled": 1}},
    }
    for name, more in sections.items():
        yield CatalogueEntry(f"precision-{name}", f"{more}", 2, {"autotp_size": 2}, more=more)
        call = {"tp_size": 2, "dtype": _BF16}
        yield CatalogueEntry(
            f"precision-{name}-call-bf16", f"{more} and dtype=torch.bfloat16", 2, {"autotp_size": 2}, call, more=more
        )


def _groups() -> Iterator[CatalogueEntry]:
    call = {"tp_size": 2, "dtype": _FP32}
    for name, layout in {"blocks": blocks(4, 2), "strides": strides(4, 2), "all": blocks(4, 4)}.items():
        inside = {"autotp_size": 2, "tp": {"tp_group": _G}}
        yield CatalogueEntry(f"config-group-{name}", f"tp.tp_group over {layout}", 4, inside, layout=layout)
    for size in (1, 4):
        layout = blocks(4, size)
        yield CatalogueEntry(
            f"mpu-of-{size}-size-2",
            f"an mpu over groups of {size}, autotp_size 2",
            4,
            {"autotp_size": 2},
            None,
            layout,
            True,
        )
        yield CatalogueEntry(
            f"call-2-mpu-of-{size}",
            f"tp_model_init(tp_size=2), an mpu over groups of {size}",
            4,
            "absent",
            call,
            layout,
            True,
        )
    for number, given in ((4, None), (6, call), (8, call)):
        section = {"autotp_size": 2} if number != 6 else "absent"
        title = f"row {number}, an mpu over {strides(4, 2)}, the first batch the same on every rank"
        yield CatalogueEntry(f"row-{number:02}-strides-warm", title, 4, section, given, strides(4, 2), True, warm=True)
    swapped = [[0, 3], [1, 2]]
    yield CatalogueEntry("mpu-crossed", f"an mpu over {swapped}", 4, {"autotp_size": 2}, None, swapped, True)


def _batches() -> Iterator[CatalogueEntry]:
    for stage in (1, 2):
        more = {"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}
        yield CatalogueEntry(f"zero-{stage}", f"ZeRO stage {stage}", 4, {"autotp_size": 2}, more=more, only="deepspeed")
    for world, size in ((2, 2), (4, 2), (4, 4)):
        title = f"train_batch_size 8, micro batches of 1, autotp_size {size}, {world} ranks"
        yield CatalogueEntry(
            f"batch-{world}-{size}", title, world, {"autotp_size": size}, more={"train_batch_size": 8}, samples=8
        )
    title = "train_batch_size 8, micro batches of 1, autotp_size 2, 4 ranks and an mpu"
    more = {"train_batch_size": 8}
    yield CatalogueEntry("batch-4-2-mpu", title, 4, {"autotp_size": 2}, None, blocks(4, 2), True, more=more, samples=8)
    mesh = {"$tuple": [4, 1]}
    yield CatalogueEntry(
        "mesh-tuple", "mesh_param=(4, 1), autotp_size 2", 4, {"autotp_size": 2}, mesh=mesh, only="deepspeed"
    )
    named = {"shape": [2, 2], "names": ["dp", "tp"]}
    yield CatalogueEntry("mesh-torch", "a torch DeviceMesh", 4, {"autotp_size": 2}, mesh=named, only="deepspeed")


def entries() -> list[CatalogueEntry]:
    """Return all entries, the twelve rows first."""
    parts = (rows(), _dtypes(), _sizes(), _sections(), _precision(), _groups(), _batches())
    return [entry for part in parts for entry in part]
