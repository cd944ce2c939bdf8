"""Configs as public projects write them train as they are, unless they ask for offloading or compression."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tpinit.reference.errors import ConfigError
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.settings import Settings, read_settings
from tpinit.runtime.training.optimizers import build_optimizer
from tpinit.runtime.training.schedules import build_schedule

from support.public_configs import CONFIGS, LEFT_TO_OTHERS, MISTAKEN, filled


def read(config: dict[str, Any], dp_size: int = 1) -> Settings:
    """Read a config as its caller hands it over, with one size left out, so that the others fit this run."""
    config = filled(copy.deepcopy(config))
    if "train_micro_batch_size_per_gpu" in config:
        config.pop("train_batch_size", None)
    return read_settings(config, dp_size, None)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_public_config_is_taken_as_it_is(name: str) -> None:
    settings = read(CONFIGS[name])
    if settings.optimizer is not None:
        optimizer = build_optimizer(settings.optimizer, torch.nn.Linear(2, 2).parameters())
        if settings.scheduler is not None:
            schedule = build_schedule(settings.scheduler, optimizer)
            optimizer.step()
            schedule.step()


def test_with_replicas_only_stage_3_is_refused_and_by_its_name() -> None:
    for name, config in CONFIGS.items():
        zero = config.get("zero_optimization")
        if isinstance(zero, dict) and zero["stage"] == 3:
            with pytest.raises(UnsupportedError, match=r"zero_optimization\.stage = 3: .* write stage 2"):
                read(config, 2)
        else:
            assert read(config, 2), name


@pytest.mark.parametrize("name", MISTAKEN)
def test_what_deepspeed_refuses_or_passes_over_is_one_error(name: str) -> None:
    config, words = MISTAKEN[name]
    with pytest.raises((ConfigError, UnsupportedError)) as raised:
        read(config)
    assert words in str(raised.value)


@pytest.mark.parametrize("name", LEFT_TO_OTHERS)
def test_offloading_and_compression_are_refused_by_their_names(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"offload|compression_training"):
        read(LEFT_TO_OTHERS[name])


def test_one_unknown_key_in_any_of_them_is_an_error() -> None:
    for name, config in CONFIGS.items():
        with pytest.raises(UnsupportedError, match="did you mean gradient_clipping"):
            read({**config, "gradient_cliping": 1.0})
        assert read({**config, "_gradient_cliping": 1.0}), name
