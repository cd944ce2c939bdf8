"""Names of DeepSpeed's engine that this engine does not have: each is refused with what to do instead."""

from __future__ import annotations

from tpinit.reference.spellings import nearest
from tpinit.runtime.errors import MissingCallError

__all__ = ["NOT_ON_THE_ENGINE", "missing_name"]

_GROUPS: dict[str, str] = {
    "monitor summary_events get_wall_clock_timers timers engine_timers tput_timer print_forward_breakdown "
    "flops_profiler flops_profiler_detailed flops_profiler_module_depth flops_profiler_output_file "
    "flops_profiler_profile_step flops_profiler_recompute_fwd_factor flops_profiler_top_modules": (
        "no monitor, timer or profiler is written; log what engine(...) and engine.get_global_grad_norm() return, and "
        "use torch.profiler"
    ),
    "allreduce_gradients buffered_allreduce_fallback allreduce_bucket allreduce_and_copy allreduce_no_retain "
    "coalesce_grad_reduction managed_gradient_accumulation": (
        "engine.backward averages the gradients; engine.no_sync() leaves them as they are, and so do micro batches "
        "before the last"
    ),
    "sparse_allreduce sparse_allreduce_bucket sparse_allreduce_no_retain sparse_all_gather all_gather_scalar": (
        "gradients are dense"
    ),
    "deepspeed_io is_map_style_dataset is_iterable_style_dataset collate_fn training_data": (
        "give training_data and collate_fn to initialize, and read engine.training_dataloader"
    ),
    "offload_states reload_states super_offload swap_tensor_config aio_config zenflow_config zero_partial_offload "
    "zero_nvme_offload_optimizer cpuadam_cores_perc": (
        "nothing is moved to the CPU or a disk: raise autotp_size, or engine.destroy() what is not needed"
    ),
    "compile_autosp compile_autotp compile_zero_optimization_stage get_autosp_backend get_autotp_backend "
    "get_compile_time get_deepcompile_backend get_deepspeed_compile_backend is_compiled is_deepcompile_active "
    "register_compile_pass uses_parallelization_pass_only": (
        "DeepCompile is not here: call engine.compile(), which is torch.compile"
    ),
    "autotuning_end_profile_step autotuning_metric autotuning_metric_path autotuning_model_info "
    "autotuning_model_info_path autotuning_profile_model_info autotuning_start_profile_step": (
        "batch sizes are not searched: `tpinit plan` counts collectives and memory of a config"
    ),
    "curriculum_learning_config data_efficiency_config data_sampling_config random_ltd_config random_ltd_initialize "
    "random_ltd_scheduler set_custom_curriculum_learning_schedule set_data_post_process_func": (
        "sequences and layers are not shortened or dropped: do it in your own data loader"
    ),
    "load_moe_state_dict has_moe_layers moe_layers num_experts gate_modules expert_parallel_group "
    "expert_data_parallel_group": (
        "DeepSpeed's mixture of experts is not here: experts of a model are sharded by engine.plan"
    ),
    "get_sequence_parallel_group seq_parallel_group seq_dp_world_size seq_data_parallel_group": (
        "Ulysses is not here: initialize(sequence_parallel=True) shards tokens over engine.groups.tp"
    ),
    "load_universal_checkpoint checkpoint_engine checkpoint_serialization_enabled checkpoint_tag_validation_enabled "
    "checkpoint_tag_validation_fail checkpoint_writer_enabled use_node_local_storage save_zero_checkpoint "
    "save_non_zero_checkpoint loaded_checkpoint_dp_world_size loaded_checkpoint_mp_world_size": (
        "checkpoints are written by torch.distributed.checkpoint, for any number of ranks: call engine.save_checkpoint"
    ),
    "torch_autocast_dtype torch_autocast_lower_precision_safe_modules torch_autocast_z0_gradscaler": (
        "the engine enters no autocast: put torch.autocast around your forward"
    ),
    "mpu client_optimizer basic_optimizer client_lr_scheduler get_optimizer_configuration optimizer_legacy_fusion "
    "tensor_parallel_config get_data_types param_names": (
        "read engine.optimizer, engine.lr_scheduler, engine.groups, engine.plan, engine.decision or engine.config"
    ),
    "zero_allgather_bucket_size zero_allgather_partitions zero_allgather_sequential zero_compute_grad_norm "
    "zero_contiguous_gradients zero_elastic_checkpoint zero_hpz_partition_size zero_ignore_unused_parameters "
    "zero_legacy_stage1 zero_load_from_fp32_weights zero_log_trace_cache_warnings zero_max_live_parameters "
    "zero_max_reuse_distance zero_model_persistence_threshold zero_module_granularity_threshold "
    "zero_multi_rank_bucket_allreduce zero_param_persistence_threshold zero_parameter_alignment "
    "zero_prefetch_bucket_size zero_reduce_scatter zero_round_robin_gradients "
    "zero_save_muon_momentum_buffer_in_memory zero_sub_group_size zero_allow_untested_optimizer "
    "zero_force_ds_cpu_optimizer is_first_weights_partition_group is_sanity_checks_enabled log_level "
    "collect_python_gc": 'the key has no effect here (docs/config.md): read engine.config["zero_optimization"]',
    "clip_fp32_gradients scale": "engine.step clips and scales; engine.clip_grad_norm_ clips before it",
}
NOT_ON_THE_ENGINE: dict[str, str] = {name: advice for names, advice in _GROUPS.items() for name in names.split()}
"""What to do instead, by the name of DeepSpeed's engine or of torch.nn.Module."""


def missing_name(name: str, known: list[str]) -> AttributeError:
    """Return the error for a name that the engine lacks. `known` are the names that it has.

    A name of DeepSpeed's engine gives MissingCallError, a TpinitError and an AttributeError: `hasattr` answers False.
    """
    if name in NOT_ON_THE_ENGINE:
        advice = NOT_ON_THE_ENGINE[name]
        return MissingCallError(f"the engine has no {name}: {advice}")
    near = nearest(name, known) if not name.startswith("_") else None
    return AttributeError(f"the engine has no attribute {name}" + (f"; did you mean {near}?" if near else ""))
