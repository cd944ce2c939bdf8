"""Names of DeepSpeed's engine that need only this engine's settings, groups and public calls: `Engine` looks here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from tpinit.runtime.errors import EngineError
from tpinit.runtime.settings import TORCH_DTYPES, BatchSizes
from tpinit.runtime.training.batch_loop import eval_batch, train_batch
from tpinit.runtime.training.engine_checkpoint import load_checkpoint, save_checkpoint
from tpinit.runtime.training.engine_export import save_pretrained
from tpinit.runtime.training.engine_norms import clip_grad_norm_, get_global_grad_norm, sum_over_parameters
from tpinit.runtime.training.engine_weights import (
    consolidated_state_dict,
    load_module_state_dict,
    module_state_dict,
    save_16bit_model,
)
from tpinit.runtime.training.exit_signal import exit_if_signalled, exit_on_signal
from tpinit.spec.vocabulary import DType

if TYPE_CHECKING:
    from tpinit.runtime.training.engine import Engine

__all__ = ["METHODS", "VALUES"]

_PERIOD = 10  # DeepSpeed's default of steps_per_print
_GRADIENTS = 2  # the stage of ZeRO that shards gradients
_OFF = (  # the config refuses what would make these true, or nothing does it
    *("amp_enabled", "autotuning_enabled", "curriculum_learning_enabled", "data_efficiency_enabled"),
    *("data_sampling_enabled", "flops_profiler_enabled", "fp16_auto_cast", "fp16_master_weights_and_gradients"),
    *("bf16_master_weights_and_gradients", "bf16_optimizer_states", "is_deepcompile_enabled", "random_ltd_enabled"),
    *("sparse_gradients_enabled", "torch_autocast_enabled", "zero_cpu_offload", "zero_quantized_gradients"),
    *("zero_quantized_nontrainable_weights", "zero_quantized_weights", "zero_use_cpu_optimizer"),
)


def _local_rank(engine: Engine) -> int:
    return int(os.environ.get("LOCAL_RANK", engine.device.index or 0))


def _held(engine: Engine, dtype: torch.dtype) -> bool:
    return any(parameter.dtype is dtype for parameter in engine.module.parameters())


def _batch_info(engine: Engine) -> tuple[int | None, int | None, int]:
    batch = engine.settings.batch
    return batch.train, batch.micro, batch.accumulation


def _kind(settings: Any) -> str | None:
    return settings.kind if settings is not None else None


def _params(settings: Any) -> dict[str, Any] | None:
    return dict(settings.params) if settings is not None else None


def _dtype(dtype: DType | None) -> torch.dtype | None:
    return TORCH_DTYPES[dtype] if dtype is not None else None


def _of_groups(engine: Engine, *keys: str) -> list[Any]:
    """Return the value of the first of `keys` that each parameter group of the optimizer holds."""
    groups: list[dict[str, Any]] = engine.optimizer.param_groups if engine.optimizer is not None else []
    return [next((group[key] for key in keys if key in group), 0.0) for group in groups]


def _gathers_on_save(engine: Engine) -> bool:
    """Return whether the config asks for whole weights on saving, which `save_pretrained` writes in any case."""
    zero = engine.config.get("zero_optimization")
    return isinstance(zero, dict) and any(
        zero.get(f"{start}gather_16bit_weights_on_model_save") is True for start in ("", "stage3_")
    )


def _set_train_batch_size(engine: Engine, train_batch_size: int) -> None:
    """Set the samples of an update: the number of micro batches in it changes, as in DeepSpeed."""
    batch, replicas = engine.settings.batch, _replicas(engine)
    if batch.micro is None or train_batch_size < 1 or train_batch_size % (batch.micro * replicas):
        raise EngineError(
            f"set_train_batch_size({train_batch_size}): this must be a multiple of train_micro_batch_size_per_gpu "
            f"({batch.micro}) x data-parallel ranks ({replicas})"
        )
    _set_batch(engine, BatchSizes(train_batch_size, batch.micro, train_batch_size // (batch.micro * replicas)))


def _set_micro_batch_size(engine: Engine, micro_batch_size: int) -> None:
    """Set the samples of a micro batch; the number of micro batches in an update stays, as in DeepSpeed."""
    if micro_batch_size < 1:
        raise EngineError(f"set_train_micro_batch_size({micro_batch_size}): this must be at least 1")
    steps = engine.settings.batch.accumulation
    _set_batch(engine, BatchSizes(micro_batch_size * steps * _replicas(engine), micro_batch_size, steps))


def _replicas(engine: Engine) -> int:
    return max(1, engine.decision.world_size // engine.groups.tp.size)


def _set_batch(engine: Engine, batch: BatchSizes) -> None:
    if engine.micro_steps % engine.settings.batch.accumulation:
        raise EngineError("a batch size can't be set between the micro batches of an update: finish the update first")
    engine.settings = replace(engine.settings, batch=batch)
    engine.micro_steps = engine.global_steps * batch.accumulation


VALUES: dict[str, Callable[[Engine], Any]] = {
    "global_rank": lambda _: dist.get_rank(),
    "local_rank": _local_rank,
    "world_size": lambda _: dist.get_world_size(),
    "dp_world_size": lambda engine: engine.groups.dp.size,
    "mp_world_size": lambda engine: engine.groups.tp.size,
    "data_parallel_group": lambda engine: engine.groups.dp.group,
    "communication_data_type": lambda engine: _dtype(engine.settings.averaging.dtype),
}
"""Attributes that need no call."""

METHODS: dict[str, Callable[..., Any]] = {
    "clip_grad_norm_": clip_grad_norm_,
    "get_global_grad_norm": get_global_grad_norm,
    "sum_over_parameters": sum_over_parameters,
    "train_batch": train_batch,
    "eval_batch": eval_batch,
    "save_checkpoint": save_checkpoint,
    "load_checkpoint": load_checkpoint,
    "exit_on_signal": exit_on_signal,
    "exit_if_signalled": exit_if_signalled,
    "save_pretrained": save_pretrained,
    "save_16bit_model": save_16bit_model,
    "save_fp16_model": save_16bit_model,
    "_consolidated_16bit_state_dict": consolidated_state_dict,
    "_zero3_consolidated_16bit_state_dict": consolidated_state_dict,
    "module_state_dict": module_state_dict,
    "load_module_state_dict": load_module_state_dict,
    "was_step_applied": lambda engine: engine.step_applied,
    "train_batch_size": lambda engine: engine.settings.batch.train,
    "train_micro_batch_size_per_gpu": lambda engine: engine.settings.batch.micro,
    "gradient_accumulation_steps": lambda engine: engine.settings.batch.accumulation,
    "get_batch_info": _batch_info,
    "set_train_batch_size": _set_train_batch_size,
    "set_train_micro_batch_size": _set_micro_batch_size,
    "loss_scale": lambda engine: engine._scaler.scale,
    "gradient_clipping": lambda engine: engine.settings.clipping,
    "dataloader_drop_last": lambda engine: engine.settings.drop_last,
    "optimizer_name": lambda engine: _kind(engine.settings.optimizer),
    "scheduler_name": lambda engine: _kind(engine.settings.scheduler),
    "get_lr": lambda engine: _of_groups(engine, "lr"),
    "get_mom": lambda engine: _of_groups(engine, "momentum", "betas"),
    "get_type": lambda engine: _of_groups(engine, "type"),
    "bfloat16_enabled": lambda engine: _held(engine, torch.bfloat16),
    "fp16_enabled": lambda engine: _held(engine, torch.float16),
    "dynamic_loss_scale": lambda engine: engine.settings.scaling.static == 0,
    "zero_optimization": lambda engine: engine.settings.zero_stage > 0,
    "zero_optimization_stage": lambda engine: engine.settings.zero_stage,
    "zero_gather_16bit_weights_on_model_save": _gathers_on_save,
    "autotp_size": lambda engine: engine.groups.tp.size,
    "get_data_parallel_rank": lambda engine: engine.groups.data_index,
    "get_tensor_parallel_rank": lambda engine: engine.groups.tp.position,
    "get_model_parallel_rank": lambda engine: engine.groups.tp.position,
    "steps_per_print": lambda engine: engine.config.get("steps_per_print", _PERIOD),
    "optimizer_params": lambda engine: _params(engine.settings.optimizer),
    "scheduler_params": lambda engine: _params(engine.settings.scheduler),
    "gradient_predivide_factor": lambda engine: engine.settings.averaging.predivide,
    "postscale_gradients": lambda engine: not engine.settings.averaging.prescale,
    "zero_overlap_comm": lambda engine: engine.settings.averaging.overlap,
    "zero_reduce_bucket_size": lambda engine: engine.settings.averaging.bucket,
    "zero_optimization_partition_gradients": lambda engine: engine.settings.zero_stage > 1,
    "zero_optimization_partition_weights": lambda engine: engine.settings.zero_stage > _GRADIENTS,
    "initial_dynamic_scale": lambda engine: 2**engine.settings.scaling.initial_scale_power,
    "empty_partition_cache": lambda _: None,  # every rank has its weights at every stage
    "memory_breakdown": lambda engine: bool(engine.config.get("memory_breakdown", False)),
    **dict.fromkeys(_OFF, lambda _: False),
    **dict.fromkeys(("zero_offload_optimizer", "zero_offload_param"), lambda _: None),
    "wall_clock_breakdown": lambda engine: bool(engine.config.get("wall_clock_breakdown", False)),
    "dump_state": lambda engine: bool(engine.config.get("dump_state", False)),
}
"""Methods; the first argument is the engine. Sizes are in samples, ranks are positions in their group."""
