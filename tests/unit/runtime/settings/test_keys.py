"""Every key of a config is honoured, harmless or refused by name; the page of keys is the table in the source."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tpinit.reference.config import read_config
from tpinit.reference.errors import ConfigError
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.settings import Settings, read_settings
from tpinit.runtime.settings.key_table import write_table
from tpinit.runtime.settings.keys import KEYS, SWITCHES, Effect, Key
from tpinit.spec.vocabulary import DType

from support.paths import ROOT

SWITCHED = {key.path for key in SWITCHES}
PAGE = Path(ROOT) / "docs" / "config.md"
values = st.one_of(
    st.booleans(), st.integers(), st.text(), st.lists(st.integers()), st.dictionaries(st.text(), st.none())
)


def nested(path: str, value: object) -> dict[str, Any]:
    section, dot, name = path.rpartition(".")
    return {section: {name: value}} if dot else {name: value}


def settings_of(config: dict[str, Any], dp_size: int = 1) -> Settings:
    return read_settings(config, dp_size, None)


def rows(effect: Effect) -> list[Key]:
    return [key for key in KEYS.values() if key.effect is effect]


def test_the_page_has_the_table_of_the_source() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert write_table(page) == page, "run: python -m tpinit.runtime.settings.key_table docs/config.md"


def test_a_page_that_lost_a_row_is_not_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    row = next(line for line in page.splitlines(keepends=True) if "`amp`" in line)
    assert write_table(page.replace(row, "")) == page
    with pytest.raises(ValueError, match="the page has no"):
        write_table("no markers")


@pytest.mark.parametrize("key", KEYS.values(), ids=str)
@pytest.mark.parametrize("value", [None, "auto"])
def test_null_and_auto_are_absent(key: Key, value: object) -> None:
    if not (value == "auto" and (key.path.endswith("batch_size") or "batch" in key.path or "accum" in key.path)):
        section = key.effect is Effect.SECTION or key.path in ("optimizer", "scheduler")
        assert settings_of(nested(key.path, None if section else value)).notes == ()


@given(value=values, key=st.sampled_from(rows(Effect.NO_EFFECT)))
def test_a_key_without_effect_takes_any_value(value: object, key: Key) -> None:
    assert settings_of(nested(key.path, value)) == Settings()


@pytest.mark.parametrize("key", [key for key in KEYS.values() if key.neutral], ids=lambda key: key.path)
def test_a_neutral_value_changes_nothing_and_says_nothing(key: Key) -> None:
    for value in key.neutral:
        assert settings_of(nested(key.path, {"enabled": value} if key.path in SWITCHED else value)) == Settings()


@pytest.mark.parametrize("key", rows(Effect.REFUSED), ids=lambda key: key.path)
def test_another_value_is_refused_with_its_path_and_what_to_do(key: Key) -> None:
    value: object = {"enabled": True} if key.path in SWITCHED else 7 if 7 not in key.neutral else 8
    with pytest.raises(UnsupportedError) as caught:
        settings_of(nested(key.path, value))
    assert f"{key.path} = " in str(caught.value)
    assert key.fix
    assert key.fix in str(caught.value)


@pytest.mark.parametrize("key", rows(Effect.LOGGED), ids=lambda key: key.path)
def test_what_is_not_written_is_said(key: Key) -> None:
    on: object = {"enabled": True} if key.path in SWITCHED else True
    (note,) = settings_of(nested(key.path, on)).notes
    assert key.path in note.text
    assert key.note in note.text


@given(inner=st.dictionaries(st.text(), values), section=st.sampled_from(sorted(SWITCHED)))
def test_a_section_that_is_off_may_hold_anything(inner: dict[str, Any], section: str) -> None:
    assert settings_of({section: {**inner, "enabled": False}}) == Settings()


def test_compression_is_on_if_a_part_of_it_is() -> None:
    parts = {"weight_quantization": {"shared_parameters": {"enabled": False}}, "layer_reduction": {"enabled": False}}
    assert settings_of({"compression_training": parts}) == Settings()
    parts["layer_reduction"] = {"enabled": True}
    with pytest.raises(UnsupportedError, match="compression_training"):
        settings_of({"compression_training": parts})


@given(
    name=st.text(min_size=1).filter(lambda name: "." not in name),
    section=st.sampled_from(["", "zero_optimization", "checkpoint", "compile", "activation_checkpointing"]),
)
def test_an_unknown_key_is_refused_and_a_comment_is_not(name: str, section: str) -> None:
    path = f"{section}.{name}" if section else name
    if path in KEYS or name.startswith(("_", "/", "#")) or name.lower() in ("comment", "comments"):
        return
    config: dict[str, Any] = {section: {name: 7}} if section else {name: 7}
    with pytest.raises(UnsupportedError, match="this key is not known"):
        settings_of(config)
    for mark in "_/#":
        settings_of({section: {mark + name: 7}} if section else {mark + name: 7})


def test_a_misspelled_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        UnsupportedError, match=r"gradient_cliping = 1.0: this key is not known; did you mean gradient_c"
    ):
        settings_of({"gradient_cliping": 1.0})
    with pytest.raises(
        UnsupportedError, match=r"zero_optimization.overlap_com = .*did you mean zero_optimization.overlap_"
    ):
        settings_of({"zero_optimization": {"overlap_com": True}})


def test_all_refusals_come_at_once() -> None:
    with pytest.raises(UnsupportedError) as caught:
        settings_of({"amp": {"enabled": True}, "checkpoint": {"load_universal": True}, "zero_optimization": {"x": 1}})
    assert str(caught.value).count("\n  ") == 4


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_is_accepted_where_one_rank_has_nothing_to_shard(stage: int) -> None:
    settings = settings_of({"zero_optimization": {"stage": stage, "offload_optimizer": {"device": "none"}}})
    assert settings.zero_stage == stage
    assert [note.changes_training for note in settings.notes] == [False] * (stage > 0)


@pytest.mark.parametrize("zero", [True, {"stage": 1}, {"stage": 2}])
def test_states_are_sharded_over_several_data_parallel_ranks(zero: Any) -> None:
    settings = settings_of({"zero_optimization": zero}, dp_size=2)
    assert settings.zero_stage == (1 if zero is True else zero["stage"])
    (note,) = settings.notes
    assert "the optimizer's states" in note.text
    assert ("gradients" in note.text) == (settings.zero_stage == 2)
    assert "sharded over 2 data-parallel ranks" in note.text


def test_weights_are_not_sharded_over_several_data_parallel_ranks() -> None:
    with pytest.raises(UnsupportedError, match="weights are not sharded over 2 data-parallel ranks; write stage 2"):
        settings_of({"zero_optimization": {"stage": 3}}, dp_size=2)


@pytest.mark.parametrize("device", ["cpu", "nvme"])
@pytest.mark.parametrize("what", ["offload_optimizer", "offload_param"])
def test_offloading_is_refused_at_every_stage(device: str, what: str) -> None:
    for stage in range(4):
        with pytest.raises(UnsupportedError, match=f"zero_optimization.{what} = .*nothing is moved"):
            settings_of({"zero_optimization": {"stage": stage, what: {"device": device}}})


@pytest.mark.parametrize("stage", [-1, 4, 1.0, "2", {}])
def test_a_stage_that_does_not_exist_is_malformed(stage: Any) -> None:
    with pytest.raises(ConfigError, match="must be 0, 1, 2 or 3"):
        settings_of({"zero_optimization": {"stage": stage}})


def test_steps_per_print_may_be_infinite_and_nothing_else() -> None:
    assert read_config({"steps_per_print": math.inf}).config == {"steps_per_print": math.inf}
    for config in ({"steps_per_print": -math.inf}, {"steps_per_print": math.nan}, {"a": {"steps_per_print": math.inf}}):
        with pytest.raises(ConfigError, match="must be finite"):
            read_config(config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"prescale_gradients": True}, (True, 1.0, True, None)),
        ({"gradient_predivide_factor": 4}, (False, 4.0, True, None)),
        ({"gradient_allreduce_op": "SUM"}, (False, 1.0, False, None)),
        ({"communication_data_type": "bf16"}, (False, 1.0, True, DType.BF16)),
        ({"communication_data_type": "FP16"}, (False, 1.0, True, DType.FP16)),
        ({"fp32_allreduce": True}, (False, 1.0, True, DType.FP32)),
        ({"fp32_allreduce": False, "communication_data_type": "auto"}, (False, 1.0, True, None)),
    ],
)
def test_averaging(config: dict[str, Any], expected: tuple[Any, ...]) -> None:
    averaging = settings_of(config).averaging
    assert (averaging.prescale, averaging.predivide, averaging.mean, averaging.dtype) == expected


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"prescale_gradients": "yes"}, "prescale_gradients"),
        ({"gradient_predivide_factor": 0}, "gradient_predivide_factor"),
        ({"gradient_predivide_factor": -1}, "gradient_predivide_factor"),
        ({"gradient_allreduce_op": "max"}, "gradient_allreduce_op"),
        ({"communication_data_type": "int8"}, "communication_data_type"),
        ({"communication_data_type": "bf16", "fp32_allreduce": True}, "communication_data_type"),
        ({"data_parallel_size": 2}, "data_parallel_size"),
        ({"zero_optimization": 3}, "zero_optimization"),
    ],
)
def test_a_malformed_value_is_named_by_its_path(config: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(config)
    assert [problem.path for problem in caught.value.problems] == [path]


def test_a_number_of_data_parallel_ranks_that_is_true_passes() -> None:
    assert settings_of({"data_parallel_size": 3}, dp_size=3) == Settings()


def test_configs_as_they_are_published_are_accepted() -> None:
    """The kinds of keys of DeepSpeed's own examples, accelerate's and OpenRLHF's, beside one another."""
    config = json.loads(
        """{"//": "comment", "_note": 1, "train_batch_size": 4, "steps_per_print": 1e6, "wall_clock_breakdown": false,
        "zero_optimization": {"stage": 3, "overlap_comm": true, "contiguous_gradients": true, "sub_group_size": 1e9,
          "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto", "offload_param": {"device": "none"},
          "stage3_max_live_parameters": 1e9, "zero_quantized_weights": false, "//": "inner"},
        "data_types": {"grad_accum_dtype": null}, "checkpoint": {"load_universal": false},
        "compile": {"deepcompile": false}, "flops_profiler": {"enabled": false, "profile_step": 1},
        "amp": {"enabled": "auto", "opt_level": "auto"}, "tensorboard": {"enabled": false},
        "elasticity": {"enabled": false},
        "activation_checkpointing": {"partition_activations": false, "profile": false}, "prescale_gradients": false}"""
    )
    settings = settings_of(config)
    assert settings.batch.train == 4
    assert [note.text for note in settings.notes if note.changes_training] == []


@pytest.mark.parametrize(("value", "bucket"), [(3000, 3000), (5e8, 1 << 23), ("auto", 1 << 23), (None, 1 << 23)])
def test_the_size_of_buckets_of_gradients_is_the_given_one_up_to_a_limit(value: Any, bucket: int) -> None:
    averaging = settings_of({"zero_optimization": {"reduce_bucket_size": value, "overlap_comm": False}}).averaging
    assert (averaging.bucket, averaging.overlap) == (bucket, False)
    assert settings_of({"zero_optimization": {"overlap_comm": "auto"}}).averaging.overlap


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "5e8", float("inf")])
def test_a_size_of_buckets_that_is_no_number_of_elements_is_an_error(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"zero_optimization\.reduce_bucket_size = "):
        settings_of({"zero_optimization": {"reduce_bucket_size": value}})
    with pytest.raises(ConfigError, match=r"zero_optimization\.overlap_comm = "):
        settings_of({"zero_optimization": {"overlap_comm": 1}})
