"""Inputs of `initialize` that must be refused, by the name of their case: each changes a setup that is legal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import init_device_mesh
from tpinit.runtime import tp_model_init
from transformers import LlamaForCausalLM

from support.process_groups import Mpu, my_group
from support.tiny_models import build


@dataclass
class Setup:
    """What one rank passes to `initialize`; as it is made, all ranks pass the same, and it is legal."""

    rank: int
    world: int
    config: Any
    model: Any
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> bool:
        """Whether this is the last rank: the one that differs, in the cases where one rank differs."""
        return self.rank == self.world - 1

    @property
    def section(self) -> dict[str, Any]:
        section: dict[str, Any] = self.config["tensor_parallel"]
        return section


Change = Callable[[Setup], Any]


def on_last_rank(change: Change) -> Change:
    """Return a change that the last rank alone makes."""
    return lambda setup: change(setup) if setup.last else None


def config_with(**entries: Any) -> Change:
    """Return a change that sets entries of the config."""
    return lambda setup: setup.config.update(entries)


def section_with(**entries: Any) -> Change:
    """Return a change that sets entries of the section `tensor_parallel`."""
    return lambda setup: setup.section.update(entries)


# --- ranks that differ -----------------------------------------------------------------------------------


def call_on_all_but_the_last_rank(setup: Setup) -> None:
    if not setup.last:
        tp_model_init(setup.model, setup.world, "fp32")


def missing_file(setup: Setup) -> None:
    setup.config = "/nonexistent/ds.json"


def other_shape(setup: Setup) -> None:
    setup.model = build(intermediate_size=64)


def other_weights(setup: Setup) -> None:
    setup.model = build(seed=setup.rank)


def frozen_embedding(setup: Setup) -> None:
    setup.model.model.embed_tokens.weight.requires_grad_(False)


def other_model_class(setup: Setup) -> None:
    setup.model = nn.Linear(4, 4)


def no_model(setup: Setup) -> None:
    setup.model = None


def other_views_of_the_groups(setup: Setup) -> None:
    made = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3], [0, 2], [1, 3])]
    setup.section["autotp_size"] = 2
    setup.arguments["mpu"] = Mpu(made[{0: 0, 1: 0, 2: 2, 3: 1}[setup.rank]])


DIFFERENT_RANKS: dict[str, Change] = {
    "other learning rate": on_last_rank(config_with(optimizer={"type": "SGD", "params": {"lr": 0.5, "momentum": 0.9}})),
    "other size": on_last_rank(section_with(autotp_size=1)),
    "other dtype": on_last_rank(section_with(dtype="bf16")),
    "no section": on_last_rank(lambda setup: setup.config.pop("tensor_parallel")),
    "one call less": call_on_all_but_the_last_rank,
    "malformed on one rank": on_last_rank(section_with(autotp_size="2")),
    "missing file on one rank": on_last_rank(missing_file),
    "other shape": on_last_rank(other_shape),
    "other weights": other_weights,
    "frozen on one rank": on_last_rank(frozen_embedding),
    "other model class": on_last_rank(other_model_class),
    "no model on one rank": on_last_rank(no_model),
    "other views of the groups": other_views_of_the_groups,
}


# --- groups that can't carry a run -----------------------------------------------------------------------


def group_that_leaves_ranks_out(setup: Setup) -> None:
    setup.section["autotp_size"] = 2
    tp_model_init(setup.model, 2, "fp32", tp_group=my_group([[0, 1]], setup.rank))


def mpu_whose_groups_are_equal(setup: Setup) -> None:
    setup.section["autotp_size"] = 2
    pairs = my_group([[0, 1], [2, 3]], setup.rank)
    setup.arguments["mpu"] = Mpu(pairs, my_group([[0, 1], [2, 3]], setup.rank))


def row_2_without_a_data_parallel_group(setup: Setup) -> None:
    del setup.config["tensor_parallel"]
    setup.arguments["mpu"] = Mpu(my_group([list(range(setup.world))], setup.rank))


def mesh_tuple(setup: Setup) -> None:
    setup.arguments["mesh_param"] = (1, setup.world)


def mesh_without_tp(setup: Setup) -> None:
    setup.arguments["mesh_param"] = init_device_mesh("cpu", (1, setup.world), mesh_dim_names=("dp", "sp"))


def mesh_with_another_dimension(setup: Setup) -> None:
    setup.section["autotp_size"] = setup.world // 2
    setup.arguments["mesh_param"] = init_device_mesh("cpu", (2, setup.world // 2), mesh_dim_names=("pp", "tp"))


GROUPS: dict[str, Change] = {
    "group that leaves ranks out": group_that_leaves_ranks_out,
    "mpu that does not cross once": mpu_whose_groups_are_equal,
    "row 2 without a data-parallel group": row_2_without_a_data_parallel_group,
    "mesh tuple": mesh_tuple,
    "mesh without tp": mesh_without_tp,
    "mesh with another dimension": mesh_with_another_dimension,
}


# --- models ----------------------------------------------------------------------------------------------


def unknown_model(setup: Setup) -> None:
    setup.model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def nothing_to_shard(setup: Setup) -> None:
    setup.model = build(num_attention_heads=1, num_key_value_heads=1, intermediate_size=3)


def forward_that_can_not_be_run(setup: Setup) -> None:
    setup.model.model.forward = lambda input_ids, inputs_embeds: input_ids


def stale_gradient(setup: Setup) -> None:
    head = setup.model.lm_head.weight
    head.grad = torch.zeros_like(head)


def on_the_meta_device(setup: Setup) -> None:
    with torch.device("meta"):
        setup.model = LlamaForCausalLM(setup.model.config)


MODELS: dict[str, Change] = {
    "unknown model": unknown_model,
    "nothing to cut": nothing_to_shard,
    "forward that can't be run": forward_that_can_not_be_run,
    "stale gradient": stale_gradient,
    "meta": on_the_meta_device,
}


# --- configs and optimizers ------------------------------------------------------------------------------


def two_configs(setup: Setup) -> None:
    setup.arguments["config_params"] = setup.config


def optimizer_with_state(setup: Setup) -> None:
    model = setup.model
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.zeros(1, 2, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    model.zero_grad()
    setup.arguments["optimizer"] = optimizer


def optimizer_of_another_model(setup: Setup) -> None:
    setup.arguments["optimizer"] = torch.optim.AdamW(build().parameters())


def another_config_for_the_call(setup: Setup) -> None:
    tp_model_init(setup.model, setup.world, "fp32", config={"train_batch_size": 64})


CONFIGS: dict[str, Change] = {
    "offload": config_with(zero_optimization={"stage": 1, "offload_optimizer": {"device": "cpu"}}),
    "universal checkpoint": config_with(checkpoint={"load_universal": True}),
    "amp": config_with(amp={"enabled": True}),
    "unknown key": config_with(gradient_cliping=1.0),
    "overlap": section_with(tp_overlap_comm=True),
    "partition config": section_with(partition_config={"layer_specs": [{"patterns": ["x"], "partition_type": "row"}]}),
    "vocab parallel cross-entropy": section_with(vocab_parallel_ce_backend="liger"),
    "preset of another model": section_with(preset_model="bloom"),
    "grain size": section_with(tp={"tp_grain_size": 64}),
    "batch does not add up": config_with(train_batch_size=7, gradient_accumulation_steps=2),
    "unknown optimizer": config_with(optimizer={"type": "Lamb"}),
    "unknown optimizer parameter": config_with(optimizer={"type": "AdamW", "params": {"learning_rate": 1e-3}}),
    "two configs": two_configs,
    "optimizer with state": optimizer_with_state,
    "optimizer of another model": optimizer_of_another_model,
    "another config for the call": another_config_for_the_call,
}

REFUSED_INPUTS: dict[str, Change] = {**DIFFERENT_RANKS, **GROUPS, **MODELS, **CONFIGS}
