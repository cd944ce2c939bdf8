"""A DeepSpeed config, in any form that users have it, to what the resolver needs (D1-D3, D5-D8, D10, D11)."""

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

__all__ = ["ConfigReading", "parse_dtype", "parse_size", "read_config", "repeated_size_problems", "section_schema"]

T = TypeVar("T")

KEY = "tensor_parallel"


@dataclass(frozen=True, slots=True)
class ConfigReading:
    """What a config says: the section if it is there (D1), the precision (D6), and a private copy of all of it.

    `config` is the runtime's to use: the caller's own object is never kept and never changed (D10).
    """

    section: Section | None = None
    precision: DType | None = None
    config: Mapping[str, object] = field(default_factory=dict, hash=False)


def read_config(
    config: Mapping[str, object] | str | PathLike[str] | None, *, groups: GroupTable | None = None
) -> ConfigReading:
    """Read a config: a Mapping, the path of a JSON or HJSON file, base64 of a JSON object, or None.

    `groups` gives a `tp_group` in the section its identity; without it, identities hold for this reading
    only. A section that `autotp_size: 0` switches off (D2) is read and checked like any other.

    Keys of the section that decide nothing are in `section.carried`, by their first names (`kernel_inject`
    as `replace_with_kernel_inject`, what is left of `tp` under `"tp"`), values as given, absent ones (D3)
    left out.

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


def parse_size(value: object, path: str) -> int:
    """Return a size (D7): an integer, whatever its value. Raises ConfigError for a bool, a float or text."""
    reader = Reader(GroupTable())
    size = reader.size(value, path)
    if size is None:
        raise ConfigError(reader.problems)
    return size


def section_schema() -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of the section, made from the table that the reader uses."""
    from tpinit.reference.schema import section_schema as make

    return make()


def repeated_size_problems(section: Section, sizes: Mapping[str, int]) -> list[Problem]:
    """Return a problem when `partition_config.tp_size`, which decides nothing, differs from a size that does.

    `sizes` is by the words that users know. Nothing is silently ignored (section 6, item 4).
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
    autotp_size = _taken(read, "autotp_size", int)
    tp_size = _taken(tp, "tp_size", int)
    dtype = _taken(read, "dtype", DType)
    tp_group = _taken(tp, "tp_group", Group)
    if tp:
        read["tp"] = tp
    section = Section(autotp_size, tp_size, dtype, tp_group, read)
    # An autotp_size of 0 means disabled (D2), which a repeated size does not contradict.
    sizes = {f"{KEY}.autotp_size": autotp_size or None, f"{KEY}.tp.tp_size": tp_size}
    reader.problems += repeated_size_problems(section, {name: size for name, size in sizes.items() if size is not None})
    return section


def _taken(read: dict[str, object], name: str, kind: type[T]) -> T | None:
    value = read.pop(name, None)
    return value if isinstance(value, kind) else None
