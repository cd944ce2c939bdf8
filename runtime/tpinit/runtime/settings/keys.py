"""The keys of DeepSpeed's config, as data: what each does here, and what to do where it is refused.

The reader walks a config along this table, and docs/config.md is made from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["KEYS", "SWITCHES", "Effect", "Key"]


class Effect(str, Enum):
    """What a key does in a run.

    `honoured`: it does what it does in DeepSpeed. `no effect`: it changes no number, with any value.
    `no effect, logged`: it changes no number; rank 0 logs that what DeepSpeed would print, write or save in memory is
    missing. `refused`: only the neutral values of `Key` are accepted. `section`: an object, its keys have rows too.
    """

    HONOURED = "honoured"
    NO_EFFECT = "no effect"
    LOGGED = "no effect, logged"
    REFUSED = "refused"
    SECTION = "section"


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `path` has a dot below a section.

    `note` says what the key does here, or why other values than `neutral` are refused; `fix` what to do instead. The
    values null and "auto" are absent for every key.
    """

    path: str
    effect: Effect
    note: str
    neutral: tuple[object, ...] = ()
    fix: str = ""


def _honoured(path: str, note: str) -> Key:
    return Key(path, Effect.HONOURED, note)


def _harmless(note: str, *paths: str) -> tuple[Key, ...]:
    return tuple(Key(path, Effect.NO_EFFECT, note) for path in paths)


def _logged(path: str, note: str, *neutral: object) -> Key:
    return Key(path, Effect.LOGGED, note, (False, *neutral))


def _refused(path: str, note: str, fix: str, *neutral: object) -> Key:
    return Key(path, Effect.REFUSED, note, neutral or (False,), fix)


_WATCH = "time and memory are not printed: use torch.profiler"
_SPEED = "it chooses how DeepSpeed stores or sends what it has sharded"
_MONITOR = "no monitor is written: log what engine(...) and engine.get_global_grad_norm() return"
_OFFLOAD = "nothing is moved to the CPU or a disk"
_MORE_RANKS = "raise autotp_size or use a smaller micro batch"
_ACTIVATIONS = "DeepSpeed's own checkpointing function is not here: the model checkpoints itself"

_TOP: tuple[Key, ...] = (
    _honoured("train_batch_size", "samples in an update, over all data-parallel ranks (D16)"),
    _honoured("train_micro_batch_size_per_gpu", "samples in a forward of one data-parallel rank"),
    _honoured("gradient_accumulation_steps", "forwards in an update"),
    _honoured("gradient_clipping", "the largest norm of the whole gradient: 1.0 if absent, 0 is off"),
    _honoured("optimizer", "see below"),
    _honoured("scheduler", "see below"),
    _honoured("dataloader_drop_last", "for `training_data`"),
    _honoured("tensor_parallel", "the decision"),
    _honoured("bf16", "the decision (also `bfloat16`)"),
    _honoured("bfloat16", "the decision"),
    _honoured("fp16", "the decision, and the loss scaling"),
    _honoured("prescale_gradients", "gradients are divided before the all-reduce instead of after it"),
    _honoured("gradient_predivide_factor", "the part of the division that comes before the all-reduce"),
    _honoured("gradient_allreduce_op", '"mean" or "sum" over data-parallel ranks'),
    _honoured("communication_data_type", "the dtype in which gradients are averaged; their own if absent"),
    _honoured("fp32_allreduce", 'true is `communication_data_type` "fp32"'),
    _honoured("steps_per_print", "nothing is printed; `engine.steps_per_print()` returns it. It may be infinite"),
    _honoured("data_parallel_size", "must be the number of data-parallel ranks"),
    _logged("wall_clock_breakdown", _WATCH),
    _logged("memory_breakdown", _WATCH),
    _logged("dump_state", "the engine's state is not printed"),
    *_harmless(
        "it is about DeepSpeed's own log, garbage collection or kernels",
        "log_level",
        "disable_python_gc",
        "disable_fused_adam",
    ),
    *_harmless("any optimizer may be used", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
    *_harmless("DeepSpeed only warns about it", "vocabulary_size"),
    *_harmless("it is for timers", "timers"),
    *_harmless("it is for offloading to a disk, which is refused where it is asked for", "aio"),
    *_harmless("it is for pipelines, and `initialize` takes no PipelineModule", "pipeline"),
    *_harmless("it is for DeepSpeed's mixture of experts", "use_data_before_expert_parallelism"),
    *_harmless("it is for DeepSpeed's sequence parallelism", "seq_parallel_communication_data_type"),
    *_harmless("the launcher sets it", "local_rank"),
    *_harmless(
        "how ranks are started and connected; DeepSpeed does not read it",
        "distributed_backend",
        "launcher",
        "deepspeed_mpi",
    ),
    _refused("sequence_parallel_size", "Ulysses is not implemented", "use initialize(sequence_parallel=True)", 1),
    _refused("managed_gradient_accumulation", "the engine counts micro batches", "use engine.no_sync()", True),
    _refused("sparse_gradients", "gradients are dense", "set it to false"),
    *_harmless("weights are always complete after an update", "disable_allgather"),
    _refused("sparse_attention", "attention is the model's", "choose it in the model's config", {}, False),
    _refused("weight_quantization", "weights are not quantized", "take it out", {}, False),
    _logged("datastates_ckpt", "it chooses how DeepSpeed writes checkpoints"),
)

SWITCHES: tuple[Key, ...] = (
    _logged("tensorboard", _MONITOR),
    _logged("wandb", _MONITOR),
    _logged("csv_monitor", _MONITOR),
    _logged("comet", _MONITOR),
    _logged("monitor_config", _MONITOR),
    _logged("flops_profiler", "operations are not counted: use torch.utils.flop_counter"),
    _logged("comms_logger", "collectives are not logged: `tpinit plan` lists them"),
    _logged("comms_config", "collectives are not logged: `tpinit plan` lists them"),
    _refused("amp", "apex is not used", 'write "bf16": {"enabled": true} or "fp16"'),
    _refused("torch_autocast", "the engine enters no autocast", "put torch.autocast around your forward"),
    _refused("autotuning", "batch sizes are not searched", "write the sizes that you want"),
    _refused("elasticity", "the number of ranks can't change in a run", "write the batch sizes"),
    _refused("compression_training", "nothing is quantized or pruned", "compress the model before initialize"),
    _refused("quantize_training", "nothing is quantized", "quantize the model before initialize"),
    _refused("data_efficiency", "batches are taken as the data gives them", "sample in your own data loader"),
    _refused("curriculum_learning", "sequences are not shortened", "shorten them in your own data loader"),
    _refused("progressive_layer_drop", "layers are not dropped", "write it in the model"),
    _refused("eigenvalue", "eigenvalues are not computed", "set enabled to false"),
    _refused("hybrid_engine", "there is no engine for inference", "call engine.generate"),
    _refused("nebula", "checkpoints are written by this process", "set enabled to false"),
    _refused("expert_parallel", "experts are sharded by the plan", "set enabled to false"),
    _refused("graph_harvesting", "CUDA graphs are not captured", "use torch.compile on engine.module"),
)
"""Sections that are off unless `enabled` is true; the other keys of a section that is off are not read."""

_ZERO: tuple[Key, ...] = (
    _honoured("zero_optimization.stage", "0 to 2; 3 where there is one data-parallel rank: see below"),
    _honoured(
        "zero_optimization.reduce_bucket_size",
        "the most elements of gradients that are sent at once, at any stage: 2^23 if absent or more",
    ),
    _honoured("zero_optimization.overlap_comm", "false: gradients are sent behind the backward; true if absent"),
    *_harmless(
        _SPEED,
        *(
            f"zero_optimization.{name}"
            for name in (
                *("allgather_bucket_size", "allgather_partitions", "allgather_size", "allgather_sequential"),
                *("compute_grad_norm", "contiguous_gradients", "cpu_offload_use_pin_memory", "elastic_checkpoint"),
                *("enable_sanity_checks", "find_unused_parameters", "gather_16bit_weights_on_model_save"),
                *("ignore_unused_parameters", "leaf_module", "legacy_stage1", "load_from_fp32_weights"),
                *("log_trace_cache_warnings", "max_elements_per_comm", "max_live_parameters", "max_reuse_distance"),
                *("memory_efficient_linear", "mics_hierarchical_params_gather", "mics_shard_size"),
                *("model_persistence_threshold", "module_granularity_threshold", "override_module_apply"),
                *("param_persistence_threshold", "parameter_alignment"),
                *("pipeline_loading_checkpoint", "prefetch_bucket_size", "reduce_scatter"),
                *("round_robin_gradients", "save_muon_momentum_buffer_in_memory", "sub_group_size"),
                *(
                    "use_all_reduce_for_fetch_params",
                    "use_multi_rank_bucket_allreduce",
                    "verbose",
                    "zero_hpz_partition_size",
                ),
                *("stage3_allgather_sequential", "stage3_gather_16bit_weights_on_model_save"),
                *("stage3_gather_fp16_weights_on_model_save", "stage3_max_live_parameters"),
                *("stage3_max_reuse_distance", "stage3_model_persistence_threshold"),
                *("stage3_module_granularity_threshold", "stage3_param_persistence_threshold"),
                *("stage3_prefetch_bucket_size", "stage3_use_all_reduce_for_fetch_params"),
            )
        ),
    ),
    _refused("zero_optimization.offload_optimizer", _OFFLOAD, _MORE_RANKS, {"device": "none"}, False, "none"),
    _refused("zero_optimization.offload_param", _OFFLOAD, _MORE_RANKS, {"device": "none"}, False, "none"),
    _refused("zero_optimization.cpu_offload", _OFFLOAD, _MORE_RANKS),
    _refused("zero_optimization.cpu_offload_param", _OFFLOAD, _MORE_RANKS),
    _refused("zero_optimization.cpu_offload_params", _OFFLOAD, _MORE_RANKS),
    _refused("zero_optimization.zero_quantized_weights", "weights are sent as they are", "set it to false"),
    _refused("zero_optimization.zero_quantized_gradients", "gradients are sent as they are", "set it to false"),
    _refused("zero_optimization.zero_quantized_nontrainable_weights", "weights stay as they are", "set it to false"),
    _refused("zero_optimization.zeropp_loco_param", "gradients are sent as they are", "take it out", {}),
    _refused("zero_optimization.zenflow", "updates are not delayed", "take it out"),
)

_SECTIONS: tuple[Key, ...] = (
    Key("zero_optimization", Effect.SECTION, "true is stage 1, false stage 0"),
    *_ZERO,
    Key("activation_checkpointing", Effect.SECTION, _ACTIVATIONS),
    *(
        _logged(f"activation_checkpointing.{name}", f"{_ACTIVATIONS} (model.gradient_checkpointing_enable())")
        for name in ("partition_activations", "cpu_checkpointing", "contiguous_memory_optimization")
    ),
    *_harmless(
        _ACTIVATIONS,
        *(
            f"activation_checkpointing.{name}"
            for name in ("number_checkpoints", "synchronize_checkpoint_boundary", "profile")
        ),
    ),
    Key("checkpoint", Effect.SECTION, "how DeepSpeed writes checkpoints"),
    *_harmless(
        "it chooses how DeepSpeed writes checkpoints",
        *(
            f"checkpoint.{name}"
            for name in (
                *("tag_validation", "use_node_local_storage", "parallel_write", "writer", "checkpoint_serialization"),
                "async_io",
            )
        ),
    ),
    _refused("checkpoint.load_universal", "DeepSpeed's universal checkpoints are not read", "set it to false"),
    Key("data_types", Effect.SECTION, "dtypes beside the decision's"),
    _refused(
        "data_types.grad_accum_dtype", "gradients add up in fp32", 'write "fp32"', "fp32", "float32", "torch.float32"
    ),
    _refused("data_types.param_dtype", "the decision gives the dtype", "write bf16, fp16 or tensor_parallel.dtype"),
    _refused("data_types.buffer_dtype", "buffers keep the dtype of the model", "take it out"),
    _refused("data_types.keep_in_fp32_modules", "the model's own list is used", 'write "auto"'),
    Key("tpinit", Effect.SECTION, "what DeepSpeed does not have, and passes over: see initialize"),
    _honoured(
        "tpinit.check_inputs_every", "a TP group's ranks compare their inputs before every so many forwards; 0 never"
    ),
    _honoured("tpinit.check_replicas_every", "ranks compare copies of parameters after every so many updates; 0 never"),
    _honoured("tpinit.on_nonfinite", 'a NaN or infinite loss or norm: "raise", "skip" the update, or "ignore" it'),
    Key("compile", Effect.SECTION, "DeepSpeed's compiler"),
    *(
        _logged(f"compile.{name}", "nothing is compiled: call engine.module.compile()")
        for name in ("deepcompile", "enabled", "autoep_non_moe")
    ),
    *_harmless(
        "it is for a compiler that is not started: call engine.module.compile()",
        *(
            f"compile.{name}"
            for name in (
                *("backend", "kwargs", "passes", "disable", "free_activation", "free_activation_threshold"),
                *("offload_activation_pin_memory", "double_buffer", "symmetric_memory", "debug_log"),
                *("sync_before_reduce", "sync_after_reduce", "sync_before_allgather", "sync_after_allgather"),
                *("keep_int_input_tensors", "keep_all_input_tensors"),
            )
        ),
    ),
    _refused("compile.offload_activation", _OFFLOAD, _MORE_RANKS),
    _refused("compile.offload_opt_states", _OFFLOAD, _MORE_RANKS),
    _refused("compile.offload_parameters", _OFFLOAD, _MORE_RANKS),
)

KEYS: dict[str, Key] = {key.path: key for key in (*_TOP, *SWITCHES, *_SECTIONS)}
"""All keys by path, in the order of the documentation."""
