"""Reading the precision and the keys around the section, and all problems at once (contract D6, D8, D10, D11)."""

from __future__ import annotations

import copy
from types import MappingProxyType

import pytest
from tpinit.reference.config import ConfigReading, read_config
from tpinit.reference.errors import ConfigError, Problem
from tpinit.spec.vocabulary import DType, Section


def problems_of(config: object) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        read_config(config)
    return caught.value.problems


def problem_of(config: object) -> Problem:
    problems = problems_of(config)
    assert len(problems) == 1, problems
    return problems[0]


def section_of(section: object) -> Section:
    read = read_config({"tensor_parallel": section}).section
    assert read is not None
    return read


# --- precision (D6) --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "precision"),
    [
        ({}, None),
        ({"bf16": {"enabled": True}}, DType.BF16),
        ({"bfloat16": {"enabled": True}}, DType.BF16),
        ({"bf16": None, "bfloat16": {"enabled": True}}, DType.BF16),
        ({"fp16": {"enabled": True, "loss_scale": 0}}, DType.FP16),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": False}}, DType.FP16),
        ({"fp16": {"enabled": "auto"}, "bf16": {"enabled": True}}, DType.BF16),
        ({"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}, None),
        ({"fp16": {}, "bf16": {"enabled": None}}, None),
        ({"fp16": {"enabled": False}}, None),
        ({"bf16": {"immediate_grad_update": True, "whatever": 1}}, None),
    ],
)
def test_precision(config, precision):
    assert read_config(config).precision is precision
    assert read_config({**config, "tensor_parallel": {}}).precision is precision


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "bf16.enabled"),
        ({"bfloat16": {"enabled": True}, "fp16": {"enabled": True}}, "bfloat16.enabled"),
        ({"bf16": {"enabled": True}, "bfloat16": {"enabled": True}}, "bfloat16"),
        ({"bf16": {"enabled": 1}}, "bf16.enabled"),
        ({"bf16": {"enabled": "true"}}, "bf16.enabled"),
        ({"fp16": {"enabled": "Auto"}}, "fp16.enabled"),
        ({"fp16": {"enabled": 0}}, "fp16.enabled"),
        ({"fp16": True}, "fp16"),
        ({"fp16": "auto"}, "fp16"),
        ({"bf16": ["enabled"]}, "bf16"),
        ({"bf16": {"enable": True}}, "bf16.enable"),
        ({"bf16": {"Enabled": True}}, "bf16.Enabled"),
        ({"fp16": {"enabeld": True}}, "fp16.enabeld"),
    ],
)
def test_malformed_precision(config, path):
    assert problem_of(config).path == path


# --- keys around the section -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "right"),
    [
        ("tensor_paralel", '"tensor_parallel"'),
        ("tensorParallel", '"tensor_parallel"'),
        ("tensor-parallel", '"tensor_parallel"'),
        ("TENSOR_PARALLEL", '"tensor_parallel"'),
        ("tensor_parallelism", '"tensor_parallel"'),
        ("tensor_parallel ", '"tensor_parallel"'),
        ("tensor_parallel_config", '"tensor_parallel"'),
        ("tensor_parallel_size", "tensor_parallel.autotp_size"),
        ("tensor_model_parallel_size", "tensor_parallel.autotp_size"),
        ("autotp", '"tensor_parallel"'),
        ("autotp_size", "tensor_parallel.autotp_size"),
        ("auto_tp_size", "tensor_parallel.autotp_size"),
        ("autotp_sise", "tensor_parallel.autotp_size"),
        ("tp_size", "tensor_parallel.autotp_size"),
        ("tp", "tensor_parallel.tp"),
        ("tp_group", "tensor_parallel.tp.tp_group"),
        ("mpu", "initialize(mpu="),
        ("dtype", "tensor_parallel.dtype"),
        ("partition_config", "tensor_parallel.partition_config"),
        ("layer_specs", "tensor_parallel.partition_config.layer_specs"),
        ("preset_model", "tensor_parallel.preset_model"),
        ("BF16", '"bf16"'),
        ("bf_16", '"bf16"'),
        ("bp16", '"bf16"'),
        ("FP16", '"fp16"'),
        ("float16", '"fp16"'),
        ("bfloat_16", '"bfloat16"'),
    ],
)
def test_a_key_that_would_be_silently_ignored_is_an_error(key, right):
    problem = problem_of({key: {}})
    assert problem.path == key
    assert right in problem.fix
    assert problem_of({key: None}).path == key


# The keys that DeepSpeed 0.19.8 and the libraries on top of it have at the top level.
REAL_KEYS = """
activation_checkpointing aio amp autotuning bf16 bfloat16 checkpoint comet comms_logger communication_data_type compile
compression_training csv_monitor curriculum_learning data_efficiency data_parallel_size data_types dataloader_drop_last
ddp_bf16 disable_allgather disable_python_gc dump_state dynamic_batching eigenvalue elasticity expert_parallel
flops_profiler fp16 fp16_master_weights_and_grads grad_accum_dtype gradient_accumulation_steps gradient_allreduce_op
gradient_clipping gradient_predivide_factor hybrid_engine log_level managed_gradient_accumulation memory_breakdown
monitor_config nebula optimizer pipeline pld prescale_gradients progressive_layer_drop quantize_training scheduler seed
seq_parallel_communication_data_type sequence_parallel_size sparse_attention sparse_gradients steps_per_print
tensor_parallel tensorboard timers torch_autocast train_batch_size train_micro_batch_size_per_gpu
use_data_before_expert_parallelism vocabulary_size wall_clock_breakdown wandb weight_quantization zenflow
zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization fp8 fp32_enabled _comment notes
pipeline_parallel context_parallel sequence_parallel expert_parallel_size model_parallel_size dp ep pp type
"""


@pytest.mark.parametrize("key", sorted(REAL_KEYS.split()))
def test_other_top_level_keys_are_left_alone(key):
    assert key in read_config({key: {}}).config


# --- everything at once, and nothing changed (D10) -------------------------------------------------


def test_all_problems_are_raised_at_once_sorted_by_path():
    config = {
        "tensor_paralel": {},
        "bf16": {"enabled": "yes"},
        "train_batch_size": float("nan"),
        "tensor_parallel": {"autotp_size": "4", "dtype": "BF16", "tp": {"tp_sise": 2, "mpu": 1}, 3: 4},
    }
    paths = [problem.path for problem in problems_of(config)]
    assert paths == sorted(paths)
    assert paths == [
        "bf16.enabled",
        "tensor_paralel",
        "tensor_parallel",
        "tensor_parallel.autotp_size",
        "tensor_parallel.dtype",
        "tensor_parallel.tp.mpu",
        "tensor_parallel.tp.tp_sise",
        "train_batch_size",
    ]
    assert all(problem.message and problem.fix for problem in problems_of(config))


def test_the_callers_object_is_neither_changed_nor_kept():
    group = object()
    config = {
        "tensor_parallel": {"autotp_size": 2, "partition_config": {}},
        "optimizer": {"params": {"lr": 1}},
        "x": group,
    }
    before = copy.copy(config), copy.deepcopy({key: config[key] for key in ("tensor_parallel", "optimizer")})
    reading = read_config(config)
    reading.config["optimizer"]["params"]["lr"] = 2
    reading.config["tensor_parallel"]["autotp_size"] = 9
    assert config == before[0]
    assert {key: config[key] for key in before[1]} == before[1]
    assert reading.config["x"] is group
    bad = {"tensor_parallel": {"autotp_size": "2"}}
    problems_of(bad)
    assert bad == {"tensor_parallel": {"autotp_size": "2"}}


def test_any_mapping_is_a_config():
    frozen = MappingProxyType({"tensor_parallel": MappingProxyType({"autotp_size": 2})})
    reading = read_config(frozen)
    assert isinstance(reading, ConfigReading)
    assert reading.section == Section(autotp_size=2)
    assert type(reading.config["tensor_parallel"]) is dict


def test_a_group_in_the_section_is_kept_by_reference():
    class Uncopyable:
        def size(self) -> int:
            return 2

        def __deepcopy__(self, memo: object) -> None:
            raise AssertionError("a process group was copied")

    group = Uncopyable()
    section = section_of({"tp": {"tp_group": group}})
    assert section.tp_group is not None
    assert section.tp_group.handle is group
    assert section.tp_group.size == 2
    assert section_of({"tp": {"tp_group": [0, 2]}}).tp_group.handle == (0, 2)
    for bad in ("world", 3, -100, {"ranks": [0]}, True, [], [0, 0], [-1], [0.5], [True], object()):
        assert problem_of({"tensor_parallel": {"tp": {"tp_group": bad}}}).path == "tensor_parallel.tp.tp_group"
