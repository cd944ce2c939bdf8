"""Reads a DeepSpeed config, in any of its forms, into what the resolver needs (D1-D3, D5-D8, D10, D11)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import TypeVar

from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.fields import SECTION
from tpinit.reference.groups import GroupTable
from tpinit.reference.source import plain_config
from tpinit.reference.spellings import show, show_int
from tpinit.reference.top import check_top_level, read_precision
from tpinit.reference.values import Reader
from tpinit.spec.vocabulary import DType, Group, Section

__all__ = ["ConfigReading", "parse_dtype", "read_config", "repeated_size_problems", "section_schema"]

T = TypeVar("T")

KEY = "tensor_parallel"


@dataclass(frozen=True, slots=True)
class ConfigReading:
    """The contents of a config: the section if there is one (D1), and the precision (D6).

    `config` is a private copy of the whole config for the runtime. The caller's own object is neither kept nor
    changed (D10).
    """

    section: Section | None = None
    precision: DType | None = None
    config: Mapping[str, object] = field(default_factory=dict, hash=False)


def read_config(
    config: Mapping[str, object] | str | PathLike[str] | None, *, groups: GroupTable | None = None
) -> ConfigReading:
    """Read a config: a Mapping, the path of a JSON or HJSON file, base64 of a JSON object, or None.

    `groups` assigns an identity to a `tp_group` in the section; without it, identities are valid for this
    reading only. A section that `autotp_size: 0` switches off (D2) is read and checked like any other.

    `section.carried` holds the keys on which the decision does not depend, under their primary names
    (`kernel_inject` as `replace_with_kernel_inject`, the rest of `tp` under `"tp"`), with their values as given.
    Absent keys (D3) are left out.

    Raises ConfigError with every problem, sorted by path.
    """
    data, problems = plain_config(config)
    if data is None:
        return ConfigReading()
    reader = Reader(groups if groups is not None else GroupTable(), problems)
    check_top_level(data, problems)
    precision = read_precision(data, problems)
    section = None if data.get(KEY) is None else _read_section(data[KEY], reader)
    if problems:
        raise ConfigError(problems)
    return ConfigReading(section, precision, data)


def parse_dtype(value: object, path: str) -> DType:
    """Return the dtype that a spelling or a torch dtype means (D8). Raises ConfigError for anything else."""
    reader = Reader(GroupTable())
    dtype = reader.dtype(value, path)
    if dtype is None:
        raise ConfigError(reader.problems)
    return dtype


def section_schema() -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of the section, made from the table that the reader uses."""
    from tpinit.reference.schema import section_schema as make

    return make()


def repeated_size_problems(section: Section, sizes: Mapping[str, int]) -> list[Problem]:
    """Return a problem where `partition_config.tp_size` differs from one of `sizes`, which it only repeats.

    `sizes` maps the name under which users write a size to its value. So the key is not silently ignored
    (section 6, item 4).
    """
    partition = section.carried.get("partition_config")
    repeated = partition.get("tp_size") if isinstance(partition, dict) else None
    if not isinstance(repeated, int):
        return []
    others = ", ".join(f"{name} = {show_int(size)}" for name, size in sizes.items() if size != repeated)
    if not others:
        return []
    path = f"{KEY}.partition_config.tp_size"
    return [Problem(path, show(repeated), f"this differs from {others}", "leave it out: it decides nothing")]


def _read_section(value: object, reader: Reader) -> Section | None:
    read = reader.read_object(SECTION, value, KEY)
    if read is None:
        return None
    tp = read.pop("tp", None)
    tp = tp if isinstance(tp, dict) else {}
    autotp_size = _pop_typed(read, "autotp_size", int)
    tp_size = _pop_typed(tp, "tp_size", int)
    dtype = _pop_typed(read, "dtype", DType)
    tp_group = _pop_typed(tp, "tp_group", Group)
    if tp:
        read["tp"] = tp
    section = Section(autotp_size, tp_size, dtype, tp_group, read)
    # An autotp_size of 0 means disabled (D2), which a repeated size does not contradict.
    sizes = {f"{KEY}.autotp_size": autotp_size or None, f"{KEY}.tp.tp_size": tp_size}
    reader.problems += repeated_size_problems(section, {name: size for name, size in sizes.items() if size is not None})
    return section


def _pop_typed(read: dict[str, object], name: str, kind: type[T]) -> T | None:
    value = read.pop(name, None)
    return value if isinstance(value, kind) else None
