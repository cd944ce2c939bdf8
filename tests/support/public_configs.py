"""DeepSpeed configs as public projects write them, by their combinations of keys.

Each row has the keys and the kinds of values of one project's file, in the words of this project: paths, names and most
numbers are others. `"auto"` is filled in as the callers of DeepSpeed do it, before it reads the config.
"""

from __future__ import annotations

from typing import Any

__all__ = ["CONFIGS", "LEFT_TO_OTHERS", "MISTAKEN", "filled"]

Config = dict[str, Any]

_AUTO_BATCH: Config = dict.fromkeys(
    ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"), "auto"
)
_SCALING: Config = {"loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1}
_FP16: Config = {"fp16": {"enabled": True, "initial_scale_power": 16, **_SCALING}}
_FP16_AUTO: Config = {"fp16": {"enabled": "auto", "initial_scale_power": 16, **_SCALING}}
_FP16_OFF: Config = {"fp16": {"enabled": False}}
_BF16: Config = {"bf16": {"enabled": True}}
_BF16_AUTO: Config = {"bf16": {"enabled": "auto"}}
_QUIET: Config = {"steps_per_print": 2000, "wall_clock_breakdown": False}
_BUCKETS: Config = {
    "allgather_partitions": True,
    "allgather_bucket_size": 2e8,
    "overlap_comm": True,
    "reduce_scatter": True,
    "reduce_bucket_size": 2e8,
    "contiguous_gradients": True,
}
_STAGE3: Config = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 1e9,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9,
    "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": True,
}
_CPU: Config = {"device": "cpu", "pin_memory": True}
_OFFLOADED: Config = {"offload_optimizer": _CPU, "offload_param": _CPU}
_NOT_OFFLOADED: Config = {"offload_optimizer": {"device": "none"}, "offload_param": {"device": "none"}}
_ACTIVATIONS: Config = {
    "partition_activations": False,
    "cpu_checkpointing": False,
    "contiguous_memory_optimization": False,
    "number_checkpoints": None,
    "synchronize_checkpoint_boundary": False,
    "profile": False,
}
_FLOPS: Config = {"profile_step": 10, "module_depth": -1, "top_modules": 1, "detailed": True, "output_file": None}


def _zero(stage: int, *parts: Config, **values: Any) -> Config:
    zero: Config = {"stage": stage}
    for part in parts:
        zero |= part
    return {"zero_optimization": zero | values}


def _optimizer(kind: str, **params: Any) -> Config:
    return {"optimizer": {"type": kind, "params": params}}


def _auto_optimizer(**params: Any) -> Config:
    return _optimizer("AdamW", lr="auto", betas="auto", eps="auto", weight_decay="auto", **params)


def _full_optimizer(kind: str = "AdamW", **params: Any) -> Config:
    return _optimizer(kind, lr=0.001, betas=[0.9, 0.99], eps=1e-8, weight_decay=0.01, **params)


def _schedule(kind: str, **params: Any) -> Config:
    return {"scheduler": {"type": kind, "params": params}}


def _warmup(**params: Any) -> Config:
    return _schedule("WarmupLR", **{"warmup_min_lr": 0, "warmup_max_lr": 0.001, "warmup_num_steps": 100, **params})


def _decay(kind: str = "WarmupDecayLR", **params: Any) -> Config:
    total = {"warmup_min_lr": 0, "warmup_max_lr": 0.001, "warmup_num_steps": 100, "total_num_steps": 1000}
    return _schedule(kind, **{**total, **params})


_AUTO_WARMUP = _warmup(warmup_min_lr="auto", warmup_max_lr="auto", warmup_num_steps="auto")
_AUTO_DECAY = _decay(warmup_min_lr="auto", warmup_max_lr="auto", warmup_num_steps="auto", total_num_steps="auto")


def _batch(micro: int | str | None = 4, accumulation: int | None = 1, train: int | None = None, **more: Any) -> Config:
    given = {
        "train_batch_size": train,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
    }
    return {name: value for name, value in given.items() if value is not None} | more


CONFIGS: dict[str, Config] = {
    # Templates for transformers' Trainer, with every value that it fills in.
    "trainer, stage 2, fp16": _FP16_AUTO | _auto_optimizer() | _AUTO_WARMUP | _zero(2, _BUCKETS) | _AUTO_BATCH | _QUIET,
    "trainer, stage 2, bf16": _BF16_AUTO | _auto_optimizer() | _AUTO_DECAY | _zero(2, _BUCKETS) | _AUTO_BATCH | _QUIET,
    "trainer, stage 3": _BF16_AUTO | _auto_optimizer() | _AUTO_WARMUP | _zero(3, _STAGE3) | _AUTO_BATCH | _QUIET,
    "trainer, stage 3, no device": _BF16 | _zero(3, _STAGE3, _NOT_OFFLOADED) | _AUTO_BATCH | _QUIET,
    "trainer, stage 3, hpz": _BF16
    | _zero(3, _STAGE3, _NOT_OFFLOADED, zero_hpz_partition_size=8)
    | _AUTO_BATCH
    | {"tensorboard": {"enabled": True, "output_path": "logs", "job_name": "run"}, "wandb": {"enabled": True}},
    "trainer, both precisions": _FP16_OFF
    | _BF16
    | _auto_optimizer()
    | _AUTO_WARMUP
    | _zero(2, {"overlap_comm": True, "contiguous_gradients": False, "reduce_bucket_size": 1e4})
    | _AUTO_BATCH
    | {"gradient_accumulation_steps": 2},
    "trainer, stage 2, untested optimizer": _FP16_AUTO
    | _zero(2, _BUCKETS, overlap_comm=False, stage3_gather_16bit_weights_on_model_save=True)
    | _AUTO_BATCH
    | {"zero_allow_untested_optimizer": True},
    "trainer, stage 2, round robin": _zero(2, _BUCKETS, round_robin_gradients=True) | _AUTO_BATCH | _BF16 | _FP16_OFF,
    "trainer, stage 0": _zero(0, _BUCKETS, round_robin_gradients=True) | _AUTO_BATCH | _BF16_AUTO,
    "trainer, stage 2, torch's Adam": _FP16
    | _optimizer("AdamW", lr="auto", weight_decay="auto", torch_adam=True, adam_w_mode=True)
    | _AUTO_DECAY
    | _zero(2, _BUCKETS)
    | _AUTO_BATCH
    | _QUIET,
    "trainer, cosine": _BF16
    | _optimizer("AdamW", lr="auto", weight_decay=0.01, betas=[0.9, 0.999], eps=1e-8)
    | _schedule("WarmupCosineLR", warmup_min_ratio=0.0, warmup_num_steps="auto", total_num_steps="auto")
    | _zero(1, {"allgather_partitions": True, "reduce_scatter": True})
    | _batch("auto", gradient_clipping=1.0)
    | {"wandb": {"enabled": False, "project": "run"}, "flops_profiler": {"enabled": False, **_FLOPS}},
    "trainer, deepcompile off": _BF16
    | _zero(3, {"sub_group_size": 100000000})
    | _AUTO_BATCH
    | {"compile": {"deepcompile": False, "offload_activation": False, "double_buffer": True, "debug_log": False}},
    "trainer, pipeline section": _zero(2, _BUCKETS)
    | _FP16
    | _AUTO_BATCH
    | {"pipeline": {"pipeline_parallel_size": 4, "chunks": 2, "partition_method": "type:transformer"}},
    "trainer, a schedule that begins anew": _FP16 | _auto_optimizer() | _decay(last_batch_iteration=-1) | _AUTO_BATCH,
    # Scripts that call deepspeed.initialize.
    "examples": _batch(None, None, 16)
    | _full_optimizer("Adam")
    | _warmup()
    | {"gradient_clipping": 1.0, "prescale_gradients": False, **_QUIET},
    "examples, fp16": _batch(None, None, 16)
    | _full_optimizer("Adam")
    | _warmup()
    | {"gradient_clipping": 1.0, "prescale_gradients": False, **_QUIET}
    | {"fp16": {"enabled": True, "fp16_master_weights_and_grads": False, "initial_scale_power": 15, **_SCALING}}
    | _zero(0, _BUCKETS, cpu_offload=False),
    "examples, an empty schedule": _batch(None, None, 16) | _full_optimizer("Adam") | {"scheduler": {}} | _QUIET,
    "megatron, stage 1": _batch(4, None, 128)
    | _zero(1)
    | _FP16
    | {"gradient_clipping": 1.0, "prescale_gradients": False},
    "megatron, stage 0": _batch(1, None) | _zero(0) | _FP16 | {"gradient_clipping": 1.0, **_QUIET},
    "megatron, data types": _batch(4, 8, None)
    | _zero(1)
    | _BF16
    | {"data_types": {"grad_accum_dtype": "fp32"}, "prescale_gradients": False, "wall_clock_breakdown": True},
    "bert, predivided": _batch(16, None, 4096)
    | _optimizer("Adam", lr=1e-3, weight_decay=0.01, bias_correction=False)
    | {"prescale_gradients": True, "gradient_predivide_factor": 8, "gradient_clipping": 1.0, "fp16": {"enabled": True}},
    "chat, stage 2": _batch(4, None, 32)
    | _zero(2, {**_NOT_OFFLOADED, "memory_efficient_linear": False, "stage3_param_persistence_threshold": 1e4})
    | {"fp16": {"enabled": True, "loss_scale_window": 100}, "gradient_clipping": 1.0, "prescale_gradients": False}
    | {"hybrid_engine": {"enabled": False, "max_out_tokens": 512, "inference_tp_size": 1}},
    "reward model, for inference": _batch(1, None)
    | _BF16
    | {"prescale_gradients": False, "wall_clock_breakdown": False},
    "rlhf, hpz and quantization off": _batch(2, 4)
    | _zero(2, {"offload_param": {"device": "none"}, "reduce_bucket_size": "auto", "zero_hpz_partition_size": 1})
    | _zero(2, {"zero_quantized_weights": False, "zero_quantized_gradients": False})
    | _BF16
    | {"gradient_clipping": 1.0, "data_types": {"grad_accum_dtype": "fp32"}},
    "llama, benchmark": _batch(4, 1) | {"optimizer": {"type": "Adam"}} | _FP16 | _zero(2, _BUCKETS),
    "llama, decay and wandb": _batch(4, None, 128)
    | _FP16
    | {"bf16": {"enabled": False}, "gradient_clipping": 1.0, "activation_checkpointing": _ACTIVATIONS}
    | _optimizer("Adam", lr=1e-5, betas=[0.9, 0.95], eps=1e-8)
    | _decay()
    | {"wandb": {"enabled": True, "team": None, "group": None, "project": "run"}, "wall_clock_breakdown": True},
    "spiking, stage 2": _batch(1, 100) | _zero(2, _BUCKETS) | _BF16 | {"gradient_clipping": 1.0},
    "gated, stage 0": _batch(16, 1) | _zero(0) | _BF16 | {"gradient_clipping": 1.0, "steps_per_print": 100},
    "tabular, stage 1": _batch(256, 1)
    | _optimizer("Adam", lr=3e-4, weight_decay=0)
    | _warmup(warmup_max_lr=3e-4)
    | _zero(1, _BUCKETS, overlap_comm=False, elastic_checkpoint=True)
    | {"bf16": {"enabled": False}, "amp": {"enabled": False, "opt_level": "O1", "min_loss_scale": 32.0}}
    | {"flops_profiler": {"enabled": False, **_FLOPS, "end_profile_step": 5}, "gradient_clipping": 0.5},
    "images, one cycle": _batch(256, 1)
    | {"_read_the_docs": "https://example.org", "prescale_gradients": False, "gradient_clipping": 5.0}
    | {"comms_logger": {"enabled": True, "verbose": False, "prof_all": False, "debug": False}}
    | {"tensorboard": {"enabled": False, "output_path": "logs", "job_name": "run"}}
    | _full_optimizer()
    | _schedule("OneCycle", cycle_min_lr=1e-4, cycle_max_lr=4e-3)
    | _FP16
    | _zero(0, _BUCKETS)
    | {"checkpoint": {"use_node_local_storage": True}},
    "stocks, zero is true": _batch(None, 1, 8)
    | _full_optimizer("Adam")
    | _warmup()
    | {"comms_logger": {"enabled": False, "verbose": False}, "zero_optimization": True, "steps_per_print": 250},
    "molecules, zero is false": _batch(None, None, 4)
    | {"zero_optimization": False, "fp16": {"enabled": True}}
    | _QUIET,
    "tutorial": _batch(4, None) | _full_optimizer() | _zero(1) | {"fp16": {"enabled": True}, "steps_per_print": 100},
    "tutorial, stage 0": _batch(None, 1, 32) | _FP16_OFF | _zero(0),
    "resnet": _batch(None, 1, 64) | _optimizer("Adam", lr=0.001, betas=[0.9, 0.999], eps=1e-8) | _warmup() | _FP16,
    "vision, adam_w_mode beside the parameters": _batch(4, None, 32)
    | {"optimizer": {"type": "Adam", "adam_w_mode": True, "params": {"lr": 1e-3, "bias_correction": True}}}
    | {"fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 7, "loss_scale_window": 128}},
    "speech, linear decay": _batch(8, 2)
    | _optimizer("AdamW", lr=1e-4, weight_decay=0.0, betas=(0.9, 0.95))
    | _decay(warmup_type="linear")
    | _FP16
    | {"bf16": {"enabled": False}, "gradient_clipping": 1.0}
    | _zero(2, _BUCKETS),
    "layers, no optimizer": _batch(8, 2) | _FP16 | _zero(2, _BUCKETS) | {"gradient_clipping": 1.0},
    "molecules, float counts": _batch(4, 1)
    | _full_optimizer("Adam")
    | _zero(1, allgather_bucket_size=5.0e7, reduce_bucket_size=5.0e7)
    | {"steps_per_print": 2.0e3},
    "inference server": _batch(1, None, None) | _zero(0) | {"bf16": {"enabled": True}, "steps_per_print": 10**9},
    "backend named": _batch(4, 4) | _zero(1) | _BF16 | {"distributed_backend": "nccl", "steps_per_print": 50},
    "launcher named": _batch(4, 4)
    | _FP16
    | _zero(2, _BUCKETS, overlap_comm=False)
    | {"launcher": "openmpi", "deepspeed_mpi": True, "zero_allow_untested_optimizer": True}
    | _full_optimizer(),
    "images, no accumulated state": _batch(4, 2, None, dump_state=False) | _zero(2, _BUCKETS) | _FP16_OFF | _BF16,
    "flux, stage 1": _batch(1, 8) | _zero(1, _BUCKETS) | _FP16 | _warmup(last_batch_iteration=-1) | _full_optimizer(),
    "communication in fp16": _batch(4, 1) | _FP16 | _zero(1) | {"communication_data_type": "fp16"},
    "compressed off": _batch(4, 1)
    | _zero(2)
    | {"compression_training": {"weight_quantization": {"shared_parameters": {"enabled": False}}}},
    "curriculum off": _batch(4, 1) | _zero(1) | {"curriculum_learning": {"enabled": False, "max_difficulty": 1024}},
    "elasticity off": _batch(4, 1) | _zero(1) | {"elasticity": {"enabled": False, "max_train_batch_size": 2000}},
    "autotuning off": _AUTO_BATCH | _zero(2) | {"autotuning": {"enabled": False, "fast": True}},
    "aio": _batch(4, 1) | _zero(2) | {"aio": {"block_size": 1048576, "queue_depth": 8, "overlap_events": True}},
    "tensor parallel, stage 1": _AUTO_BATCH | _zero(1) | _BF16 | {"tensor_parallel": {"autotp_size": 2}},
}
"""What the runtime takes as it is."""

MISTAKEN: dict[str, tuple[Config, str]] = {
    "encoder, max_grad_norm": (
        _batch(20, 100, None)
        | _optimizer("Adam", lr=0.01, betas=[0.99, 0.999], eps=1e-8)
        | _warmup()
        | {"max_grad_norm": 0.5},
        "did you mean gradient_clipping?",
    ),
    "graphs, freeze_step": (
        _batch(None, 1, 2) | _optimizer("Adam", lr=1e-4, freeze_step=1000) | _zero(1) | _FP16,
        "Adam has no such parameter",
    ),
    "grammar, apex": (
        _batch(None, 2, 32)
        | {"optimizer": {"type": "Adam", "params": {"lr": 1e-5}, "eps": 1e-8, "weight_decay": 1e-2}}
        | {"fp16": {"enabled": False}, "amp": {"enabled": True, "opt_level": "O1"}, "gradient_clipping": 1.0},
        "write it in optimizer.params",
    ),
    "images, dtype of parameters": (
        _batch(4, 1)
        | _zero(2, _BUCKETS)
        | {"data_types": {"grad_accum_dtype": "fp32", "params_dtype": "fp32"}, "tensorboard": {"enabled": False}}
        | {"fp16": {"enabled": True, "auto_cast": False, "consecutive_hysteresis": False, "loss_scale": 0}},
        "did you mean data_types.param_dtype?",
    ),
    "sizes by an old name": (
        {"train_batch_size": 32, "micro_batch_size_per_gpu": 1} | _zero(1) | _BF16,
        "did you mean train_micro_batch_size_per_gpu?",
    ),
    "opt_level beside fp16": (
        _batch(None, None, 32)
        | {"fp16": {"enabled": True, "min_loss_scale": 1, "opt_level": "O3"}}
        | _full_optimizer()
        | _zero(1),
        "take fp16.opt_level out",
    ),
    "activations cast": (
        _batch(4, 2)
        | _full_optimizer("Adam")
        | _decay(warmup_type="linear")
        | {"fp16": {"enabled": True, "auto_cast": True, "initial_scale_power": 12}, "gradient_clipping": 1.0},
        "fp16.auto_cast = true",
    ),
    "lion, triton": (
        _batch(4, 1) | _optimizer("Lion", lr=2e-6, betas=[0.9, 0.999], use_triton=True, weight_decay=2e-3) | _zero(1),
        "Lion has no such parameter",
    ),
}
"""What DeepSpeed 0.19.8 refuses too, or passes over in silence, with words of our error."""

LEFT_TO_OTHERS: dict[str, Config] = {
    "stage 3, offloaded optimizer": _FP16_AUTO
    | _auto_optimizer()
    | _zero(3, _STAGE3, offload_optimizer=_CPU)
    | _AUTO_BATCH,
    "stage 3, all offloaded": _BF16 | _zero(3, _STAGE3, _OFFLOADED) | _AUTO_BATCH,
    "stage 2, offloaded": _batch(1, None) | _zero(2, _BUCKETS, offload_optimizer=_CPU),
    "stage 2, offloaded, old name": _batch(1, None) | _zero(2, _BUCKETS, cpu_offload=True),
    "stage 1, nvme": _batch(4, 1)
    | _zero(1, offload_optimizer={"device": "nvme", "nvme_path": "/local", "buffer_count": 4}),
    "quantized": _batch(4, 1)
    | {"compression_training": {"weight_quantization": {"shared_parameters": {"enabled": True, "quantize_groups": 1}}}},
}
"""What asks for offloading or compression: refused by name."""

_FILLED: dict[str, Any] = {
    "lr": 1e-4,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "weight_decay": 0.01,
    "warmup_min_lr": 0,
    "warmup_max_lr": 1e-4,
    "warmup_num_steps": 10,
    "total_num_steps": 100,
    "gradient_clipping": 1.0,
    "train_micro_batch_size_per_gpu": 4,
    "enabled": True,
}


def filled(config: Config) -> Config:
    """Return a config with values for `"auto"` where callers of DeepSpeed fill them in; the rest is left out."""
    return {
        key: filled(value) if isinstance(value, dict) else _FILLED[key] if value == "auto" else value
        for key, value in config.items()
        if value != "auto" or key in _FILLED
    }
