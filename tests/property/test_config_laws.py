"""Reading a config: every spelling of a meaning reads the same, every defect is found where it is."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tpinit.conformance.config_strategies import DTYPE_SPELLINGS
from tpinit.conformance.oracle import comparable, oracle
from tpinit.conformance.strategies import (
    FakeProcessGroup,
    MalformedConfig,
    configs,
    inputs,
    malformed_configs,
    reached,
    reordered,
    spellings_of,
)
from tpinit.reference.config import ConfigReading, parse_dtype, read_config
from tpinit.reference.errors import ConfigError
from tpinit.reference.groups import GroupTable
from tpinit.reference.resolver import resolve
from tpinit.spec.vocabulary import DType, Group, Inputs, Section

Config = dict[str, Any]
numbers = st.none() | st.integers(0, 4) | st.integers()
handles = st.none() | st.builds(FakeProcessGroup, st.integers(1, 8)) | st.sampled_from([(0,), (0, 2), (1, 3, 5)])
sections = st.builds(
    lambda autotp_size, tp_size, dtype, handle: Section(
        autotp_size, tp_size, dtype, None if handle is None else Group(0, size_of(handle), handle)
    ),
    numbers,
    numbers,
    st.none() | st.sampled_from(DType),
    handles,
)
precisions = st.sampled_from([None, DType.BF16, DType.FP16])
meanings = st.tuples(st.none() | sections, precisions)


def size_of(handle: object) -> int:
    return handle.size() if isinstance(handle, FakeProcessGroup) else len(handle)  # type: ignore[arg-type] # a tuple


def meaning_of(reading: ConfigReading) -> tuple[Section | None, DType | None]:
    """What decides in a reading: nothing carried, and groups by their handles alone."""
    return reading.section and replace(reading.section, carried={}), reading.precision


def handle_of(section: Section | None) -> object:
    return section and section.tp_group and section.tp_group.handle


def snapshot(value: object) -> object:
    """All that could be changed in plain data: types, keys in their order, and the identity of what is not plain."""
    if isinstance(value, Mapping):
        return type(value), [(key, snapshot(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [snapshot(item) for item in value]
    plain = isinstance(value, (int, float, str, type(None)))
    return type(value), repr(value) if plain else id(value)


@settings(max_examples=300)
@given(meanings.flatmap(lambda meaning: st.tuples(st.just(meaning), spellings_of(*meaning))))
def test_every_spelling_reads_as_what_it_means(spelled: tuple[tuple[Section | None, DType | None], Config]) -> None:
    """D1, D3, D5-D8: absent, null and "auto", `tp` and `tensor_parallel`, dtype spellings, order of keys."""
    (section, precision), config = spelled
    reading = read_config(config, groups=GroupTable())
    assert meaning_of(reading) == (section, precision)
    assert handle_of(reading.section) == handle_of(section)


@given(configs(process_groups=True).flatmap(lambda config: st.tuples(st.just(config), reordered(config))))
def test_the_order_of_keys_is_irrelevant(both: tuple[Config, Config]) -> None:
    config, other = both
    groups = GroupTable()
    assert read_config(other, groups=groups) == read_config(config, groups=groups)


def test_reordering_really_reorders() -> None:
    changed = reached(reordered({"a": {"c": 1, "d": 2}, "b": 3}), lambda one: [(*one, *one["a"])], 60)
    assert len(changed) == 4


@given(inputs(), configs().flatmap(lambda config: st.tuples(st.just(config), reordered(config))))
def test_the_order_of_keys_decides_nothing(one: Inputs, both: tuple[Config, Config]) -> None:
    decisions = []
    for config in both:
        reading = read_config(config)
        complete = replace(one, section=reading.section, precision=reading.precision)
        decisions.append(resolve(complete))
        assert comparable(decisions[-1]) == oracle(complete)
    assert decisions[0] == decisions[1]


@given(configs())
def test_a_mapping_a_file_and_base64_read_the_same(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    text = json.dumps(config)
    path = tmp_path_factory.mktemp("config") / "ds_config.json"
    path.write_text(text, encoding="utf-8")
    wanted = read_config(config)
    for form in (str(path), path, encoded(text, base64.b64encode), encoded(text, base64.urlsafe_b64encode)):
        assert read_config(form) == wanted
    path.unlink()
    assert not Path(path).exists()


def encoded(text: str, how: Callable[[bytes], bytes]) -> str:
    return how(text.encode("utf-8")).decode("ascii")


FIELDS = {
    "autotp_size": ("tensor_parallel", "autotp_size"),
    "dtype": ("tensor_parallel", "dtype"),
    "tp.tp_size": ("tensor_parallel", "tp", "tp_size"),
    "tp.tp_group": ("tensor_parallel", "tp", "tp_group"),
    "bf16.enabled": ("bf16", "enabled"),
    "fp16.enabled": ("fp16", "enabled"),
    "tp_overlap_comm": ("tensor_parallel", "tp_overlap_comm"),
    "preset_model": ("tensor_parallel", "preset_model"),
}


@pytest.mark.parametrize("absent", ["auto", None], ids=["auto", "null"])
@pytest.mark.parametrize("field", FIELDS)
def test_auto_equals_absent(field: str, absent: str | None) -> None:
    """D3, for one field at a time beside any values of the others."""
    *blocks, key = FIELDS[field]

    @settings(max_examples=25)
    @given(configs(process_groups=True))
    def check(config: Config) -> None:
        section = config.get("tensor_parallel")
        if section and "tensor_parallel" in section:
            section["tp"] = section.pop("tensor_parallel")
        block = config
        for name in blocks:
            if block.get(name) is None:
                block[name] = {}
            block = block[name]
        groups = GroupTable()
        block[key] = absent
        with_it = read_config(config, groups=groups)
        del block[key]
        without = read_config(config, groups=groups)
        assert with_it.precision == without.precision
        assert with_it.section == without.section

    check()


def test_every_spelling_of_a_dtype_is_that_dtype() -> None:
    """D8, torch's own dtypes too."""
    import torch

    own = {DType.FP32: torch.float32, DType.FP16: torch.half, DType.BF16: torch.bfloat16}
    for dtype, spellings in DTYPE_SPELLINGS.items():
        for spelling in (*spellings, own[dtype]):
            assert parse_dtype(spelling, "call.dtype") is dtype
            for enabled in ({}, {"bf16": {"enabled": True}}):
                reading = read_config({"tensor_parallel": {"dtype": spelling}, **enabled})
                assert reading.section == Section(dtype=dtype)


@given(configs(process_groups=True))
def test_tp_and_tensor_parallel_are_one_name_inside_the_section(config: Config) -> None:
    section = config.get("tensor_parallel") or {}
    block = section.pop("tp", section.pop("tensor_parallel", {"tp_size": 2}))
    groups = GroupTable()
    readings = [
        read_config({**config, "tensor_parallel": {**section, name: block}}, groups=groups)
        for name in ("tp", "tensor_parallel")
    ]
    assert readings[0].section == readings[1].section


@given(configs(process_groups=True))
def test_reading_changes_nothing_and_keeps_nothing(config: Config) -> None:
    """D10, and that what was read is the reader's own copy."""
    before = snapshot(config)
    reading = read_config(config)
    assert snapshot(config) == before
    scribble(reading.config)
    if reading.section is not None:
        scribble(reading.section.carried)
    assert snapshot(config) == before


def scribble(value: object) -> None:
    """Change everything in this plain data that can be changed."""
    if isinstance(value, dict):
        for item in value.values():
            scribble(item)
        value.clear()
    elif isinstance(value, list):
        for item in value:
            scribble(item)
        value.append("scribble")


@settings(max_examples=400)
@given(malformed_configs())
def test_a_defect_is_one_problem_at_its_path_and_nothing_is_changed(malformed: MalformedConfig) -> None:
    before = snapshot(malformed.config)
    with pytest.raises(ConfigError) as raised:
        read_config(malformed.config)
    assert snapshot(malformed.config) == before
    (problem,) = raised.value.problems
    assert problem.path in malformed.paths
    assert problem.path in str(raised.value)
    assert problem.message
    assert problem.fix


@given(malformed_configs())
def test_a_malformed_config_is_malformed_as_a_file_too(
    tmp_path_factory: pytest.TempPathFactory, malformed: MalformedConfig
) -> None:
    path = tmp_path_factory.mktemp("malformed") / "ds_config.json"
    path.write_text(json.dumps(malformed.config), encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        read_config(path)
    (problem,) = raised.value.problems
    assert problem.path in malformed.paths


# --- negative controls --------------------------------------------------------------------------------


def test_the_snapshot_sees_every_change() -> None:
    group = FakeProcessGroup(2)
    config: Config = {"a": 1, "b": {"c": [1, 2], "g": group}}
    changed: list[Config] = [
        {"b": {"c": [1, 2], "g": group}, "a": 1},  # another order
        {"a": True, "b": {"c": [1, 2], "g": group}},  # equal, of another type
        {"a": 1, "b": {"c": (1, 2), "g": group}},
        {"a": 1, "b": {"c": [1, 2], "g": FakeProcessGroup(2)}},  # another object
        {"a": 1, "b": {"c": [1, 2], "g": group, "d": None}},
    ]
    assert snapshot({"a": 1, "b": {"c": [1, 2], "g": group}}) == snapshot(config)
    assert snapshot(config) not in [snapshot(other) for other in changed]


def test_a_reader_that_forgives_is_found_out() -> None:
    """Without its defect's key, each malformed config whose defect is one key reads well: the defect was all."""

    def without_defect(malformed: MalformedConfig) -> list[str]:
        config = malformed.config
        *blocks, key = malformed.path.split(".")
        if len(malformed.paths) > 1:
            return []
        block = config
        for name in blocks:
            block = block[name]
        del block[key]
        read_config(config)
        return ["read"]

    assert reached(malformed_configs(), without_defect, 300) == {"read"}


def test_two_defects_are_reported_together() -> None:
    config = {"tensor_parallel": {"autotp_size": True, "tp": {"mpu": 1}, "tp_sise": 2}, "fp16": 3}
    with pytest.raises(ConfigError) as raised:
        read_config(config)
    assert [problem.path for problem in raised.value.problems] == [
        "fp16",
        "tensor_parallel.autotp_size",
        "tensor_parallel.tp.mpu",
        "tensor_parallel.tp_sise",
    ]
