"""Every public name of a sharded model, its engine, optimizer and scheduler, and what a call of it gives.

`call_guards` refuses what is refused here. docs/calls.md shows these tables, and a test holds each of them to the names
of the real classes: a name of a new release of torch or transformers that is in no table fails it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

__all__ = [
    "DTYPE",
    "ENGINE_CALLS",
    "MODULE_CALLS",
    "OPTIMIZER_CALLS",
    "PEFT_CALLS",
    "REFUSED",
    "SCHEDULER_CALLS",
    "STRUCTURE",
    "TABLES",
    "TRANSFORMERS_CALLS",
    "Answer",
    "PublicName",
    "answer_of",
    "markdown",
]


class Answer(str, Enum):
    """What a call on a sharded model gives.

    `right`: what the unsharded model gives. `guarded`: that, or EngineError where it would differ. `part`: this rank's
    part of the parameters, as torch's local modules do. `same`: what no sharding changes (names, flags, modules,
    buffers, class attributes). `refused`: EngineError, and nothing has changed.
    """

    RIGHT = "right"
    GUARDED = "guarded"
    PART = "part"
    SAME = "same"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class PublicName:
    """Names that give the same kind of answer. `remark` says what; for refused ones, what to do instead."""

    names: tuple[str, ...]
    answer: Answer
    remark: str

    @staticmethod
    def of(answer: Answer, names: str, remark: str = "") -> PublicName:
        """Return the row of names that are separated by spaces."""
        return PublicName(tuple(names.split()), answer, remark)


_RESIZE = "change the model before initialize; a sharded one keeps its size"
DTYPE = "set bf16 or fp16 in the config, or cast the model before initialize"
STRUCTURE = (
    "the plan, the optimizer and the other ranks know the modules and parameters of initialize; change the model before"
)
_DRAW = "draw the weights before initialize, or use tpinit.runtime.from_config"
_SAVE_ADAPTERS = "save the adapters with engine.module.save_pretrained, "
_DISTRIBUTE = "tpinit has sharded this model; transformers would shard it again or gather what it did not shard"

MODULE_CALLS: tuple[PublicName, ...] = (
    PublicName.of(
        Answer.RIGHT,
        "forward eval train zero_grad requires_grad_",
        "`forward` without the checks of a call",
    ),
    PublicName.of(
        Answer.GUARDED,
        "compile",
        "right, as torch.compile is; refuses fullgraph=True: a sharded model is several graphs",
    ),
    PublicName.of(
        Answer.GUARDED,
        "load_state_dict",
        "takes this rank's part, or the whole model's state dict; refuses another rank's part, and assign=True",
    ),
    PublicName.of(
        Answer.GUARDED,
        "float half bfloat16 double to",
        f"the model itself if dtype and device are its own; else refused: {DTYPE}",
    ),
    PublicName.of(Answer.GUARDED, "cpu cuda xpu ipu mtia", "the model itself if it is there; else refused"),
    PublicName.of(
        Answer.GUARDED, "apply", "runs the function; refuses one that writes to weights: a rank holds a part"
    ),
    PublicName.of(
        Answer.GUARDED,
        "register_forward_hook register_forward_pre_hook register_full_backward_hook "
        "register_full_backward_pre_hook register_backward_hook",
        "on modules whose tensors are whole; the next forward refuses hooks that would see slices",
    ),
    PublicName.of(
        Answer.PART,
        "state_dict",
        "each sharded parameter is a `LocalShard`, so torch.distributed.checkpoint writes and reads the rank's own "
        "pieces; get_model_state_dict with full_state_dict=True gives the whole model",
    ),
    PublicName.of(Answer.PART, "parameters named_parameters get_parameter", "the rank's own tensors, which it trains"),
    PublicName.of(Answer.PART, "extra_repr share_memory", "of the rank's own tensors"),
    PublicName.of(
        Answer.PART,
        "register_state_dict_pre_hook register_state_dict_post_hook register_load_state_dict_pre_hook "
        "register_load_state_dict_post_hook",
        "the hooks see the rank's own tensors",
    ),
    PublicName.of(
        Answer.SAME,
        "modules named_modules children named_children get_submodule buffers named_buffers get_buffer register_buffer "
        "get_extra_state set_extra_state",
        "the modules stay, and buffers are whole on every rank",
    ),
    PublicName.of(Answer.SAME, "T_destination call_super_init dump_patches", "class attributes"),
    PublicName.of(Answer.REFUSED, "type", DTYPE),
    PublicName.of(
        Answer.REFUSED,
        "to_empty",
        "the weights would be lost on this rank only; build a new model and call initialize again",
    ),
    PublicName.of(Answer.GUARDED, "register_parameter", f"refused, as an assignment of a parameter is: {STRUCTURE}"),
    PublicName.of(Answer.REFUSED, "add_module register_module set_submodule", STRUCTURE),
)
"""The names of torch.nn.Module."""

TRANSFORMERS_CALLS: tuple[PublicName, ...] = (
    PublicName.of(Answer.RIGHT, "generate", "the same tokens on all ranks, sampled ones too; call it on every rank"),
    PublicName.of(
        Answer.RIGHT,
        "save_pretrained",
        "writes the whole model, or whole peft adapters, for plain transformers; call it on every rank, rank 0 writes",
    ),
    PublicName.of(Answer.RIGHT, "num_parameters", "counts the whole model"),
    PublicName.of(
        Answer.RIGHT,
        "gradient_checkpointing_enable gradient_checkpointing_disable activation_checkpointing_enable "
        "activation_checkpointing_disable enable_input_require_grads disable_input_require_grads set_adapter "
        "enable_adapters disable_adapters",
        "",
    ),
    PublicName.of(Answer.RIGHT, "set_attn_implementation set_experts_implementation", "the same plan computes with it"),
    PublicName.of(Answer.RIGHT, "loss_function", "a property; one that is set after initialize gets whole logits"),
    PublicName.of(
        Answer.GUARDED,
        "get_adapter_state_dict",
        f"of a state dict that is given; without one refused: {_SAVE_ADAPTERS}on every rank",
    ),
    PublicName.of(Answer.GUARDED, "tie_weights", "does nothing where the weights are tied; else refused"),
    PublicName.of(Answer.PART, "get_memory_footprint", "bytes that this rank holds"),
    PublicName.of(
        Answer.PART,
        "get_input_embeddings get_output_embeddings get_position_embeddings get_parameter_or_buffer",
        "modules and tensors of this rank",
    ),
    PublicName.of(
        Answer.SAME,
        "get_decoder get_encoder base_model retrieve_modules_from_names named_non_persistent_buffers device dtype",
        "the modules stay, and buffers are whole on every rank",
    ),
    PublicName.of(
        Answer.SAME,
        "prepare_inputs_for_generation adjust_generation_fn compute_transition_scores heal_tokens load_custom_generate "
        "prepare_decoder_input_ids_from_labels "
        "get_compiled_call warn_if_padding_and_no_attention_mask",
        "work on inputs and outputs, which are whole",
    ),
    PublicName.of(
        Answer.SAME,
        "active_adapters add_model_tags can_generate can_record_outputs dummy_inputs get_correct_attn_implementation "
        "get_correct_experts_implementation get_expanded_tied_weights_keys get_experts_implementation get_init_context "
        "is_activation_checkpointing is_backend_compatible is_custom_code is_gradient_checkpointing is_remote_code "
        "register_for_auto_class should_save_on_this_rank is_distributed_loading_by_transformers from_pretrained "
        "mark_tied_weights_as_initialized",
        "flags, names and class methods; `from_pretrained` builds another, unsharded model",
    ),
    PublicName.of(
        Answer.SAME,
        "base_model_prefix config_class ep_plan fsdp_plan fsdp_size generation_config_class input_modalities "
        "main_input_name model_tags output_modalities pp_plan supports_context_parallel "
        "supports_gradient_checkpointing supports_pp_plan supports_tp_plan tp_plan tp_size use_kernels",
        "attributes; the plans and sizes are transformers' own, which shards nothing here",
    ),
    PublicName.of(
        Answer.SAME,
        "barrier_after_gathered_checkpoint_save gather_sharded_state_dict_for_save init_parallel_plans",
        "steps of save_pretrained, which do nothing where transformers did not shard the model",
    ),
    PublicName.of(
        Answer.REFUSED,
        "resize_token_embeddings resize_position_embeddings set_input_embeddings set_output_embeddings set_decoder "
        "set_encoder prune_heads",
        _RESIZE,
    ),
    PublicName.of(Answer.REFUSED, "init_weights initialize_weights post_init", _DRAW),
    PublicName.of(
        Answer.REFUSED,
        "push_to_hub",
        "call engine.module.save_pretrained(folder) on every rank, and upload the folder from rank 0",
    ),
    PublicName.of(Answer.REFUSED, "add_adapter", "add adapters before initialize"),
    PublicName.of(Answer.REFUSED, "load_adapter enable_peft_hotswap", "load adapters before initialize"),
    PublicName.of(Answer.REFUSED, "delete_adapter", "delete adapters before initialize"),
    PublicName.of(Answer.REFUSED, "dequantize", "dequantize the model before initialize"),
    PublicName.of(Answer.REFUSED, "set_use_kernels", "it replaces forwards of layers; call it before initialize"),
    PublicName.of(
        Answer.REFUSED,
        "continuous_batching_context_manager destroy_cached_continuous_batching_manager generate_batch "
        "init_continuous_batching",
        "call generate: continuous batching runs in threads of each rank, which do not agree on their batches",
    ),
    PublicName.of(
        Answer.REFUSED,
        "maybe_distribute_model prepare_distribute_model save_distributed_checkpoint",
        f"{_DISTRIBUTE}; call engine.module.save_pretrained, or torch.distributed.checkpoint with its state_dict()",
    ),
)
"""The names that transformers' models add: PreTrainedModel, its mixins, and models that generate."""

PEFT_CALLS: tuple[PublicName, ...] = (
    PublicName.of(Answer.RIGHT, "get_nb_trainable_parameters print_trainable_parameters", "count the whole model"),
    PublicName.of(
        Answer.RIGHT,
        "disable_adapter enable_adapter_layers disable_adapter_layers set_requires_grad "
        "prepare_model_for_gradient_checkpointing merge_adapter unmerge_adapter",
    ),
    PublicName.of(
        Answer.SAME,
        "active_peft_config base_model_torch_dtype create_or_update_model_card get_base_model get_layer_status "
        "get_model_status has_active_enabled_adapter modules_to_save peft_config supports_lora_conversion "
        "active_adapter get_model_config uses_shared_state",
        "flags, names and modules",
    ),
    PublicName.of(
        Answer.PART, "get_prompt get_prompt_embedding_to_save", "prompts are replicated, so a part is the whole"
    ),
    PublicName.of(
        Answer.REFUSED, "merge_and_unload unload", f"{_SAVE_ADAPTERS}and merge them into the unsharded model"
    ),
    PublicName.of(Answer.REFUSED, "add_weighted_adapter inject_adapter subtract_mutated_init", "before initialize"),
)
"""The names that peft's models add; `merge_and_unload` and its kin are those of peft's tuners."""

OPTIMIZER_CALLS: tuple[PublicName, ...] = (
    PublicName.of(Answer.GUARDED, "step", "after loss.backward(); refused between engine.backward and engine.step"),
    PublicName.of(Answer.RIGHT, "zero_grad", "drops the gradients; engine.step() does"),
    PublicName.of(
        Answer.PART, "state_dict load_state_dict", "this rank's part, which torch.distributed.checkpoint can tell"
    ),
    PublicName.of(
        Answer.GUARDED, "add_param_group", "takes parameters that the model had at initialize; refuses others"
    ),
    PublicName.of(
        Answer.PART,
        "register_load_state_dict_post_hook register_load_state_dict_pre_hook register_state_dict_post_hook "
        "register_state_dict_pre_hook register_step_post_hook register_step_pre_hook profile_hook_step",
        "the hooks see this rank's tensors",
    ),
    PublicName.of(Answer.SAME, "OptimizerPostHook OptimizerPreHook", "types"),
)
"""The names of torch.optim.Optimizer."""

SCHEDULER_CALLS: tuple[PublicName, ...] = (
    PublicName.of(
        Answer.SAME,
        "get_last_lr get_lr load_state_dict state_dict step",
        "no tensor is sharded; engine.step() calls `step`",
    ),
)
"""The names of torch.optim.lr_scheduler.LRScheduler."""

ENGINE_CALLS: tuple[PublicName, ...] = (
    PublicName.of(
        Answer.RIGHT, "save_checkpoint load_checkpoint", "the whole state of training; call them on every rank"
    ),
    PublicName.of(
        Answer.RIGHT,
        "exit_on_signal exit_if_signalled",
        "after Ctrl-C or SIGTERM all ranks save and end (docs/faults.md); call them on every rank",
    ),
    PublicName.of(
        Answer.RIGHT,
        "save_pretrained",
        "the model's, and its tokenizer: `tokenizer=`, or the files beside the model that was loaded; on every rank",
    ),
    PublicName.of(
        Answer.RIGHT,
        "save_16bit_model save_fp16_model",
        "the whole model in one file, which rank 0 writes; call them on every rank",
    ),
    PublicName.of(
        Answer.PART, "module_state_dict load_module_state_dict", "those of the model: this rank's part, or a whole one"
    ),
    PublicName.of(
        Answer.RIGHT,
        "backward step is_gradient_accumulation_boundary set_gradient_accumulation_boundary no_sync train_batch "
        "eval_batch get_global_grad_norm clip_grad_norm_ sum_over_parameters",
        "as the unsharded model with the whole batch trains; the norm is the whole model's",
    ),
    PublicName.of(
        Answer.SAME,
        "training autotp_size bfloat16_enabled communication_data_type data_parallel_group dataloader_drop_last "
        "destroy dp_world_size empty_partition_cache gradient_predivide_factor initial_dynamic_scale memory_breakdown "
        "optimizer_params postscale_gradients scheduler_params zero_optimization_partition_gradients "
        "zero_optimization_partition_weights zero_overlap_comm zero_reduce_bucket_size "
        "dump_state dynamic_loss_scale fp16_enabled get_batch_info get_data_parallel_rank get_lr "
        "get_model_parallel_rank get_mom get_tensor_parallel_rank get_type global_rank gradient_accumulation_steps "
        "gradient_clipping local_rank loss_scale mp_world_size optimizer_name scheduler_name set_train_batch_size "
        "set_train_micro_batch_size steps_per_print train_batch_size train_micro_batch_size_per_gpu "
        "wall_clock_breakdown was_step_applied world_size zero_gather_16bit_weights_on_model_save "
        "zero_optimization zero_optimization_stage",
        "settings, counters, ranks and groups of this engine",
    ),
    PublicName.of(
        Answer.SAME,
        "amp_enabled autotuning_enabled bf16_master_weights_and_gradients bf16_optimizer_states "
        "curriculum_learning_enabled data_efficiency_enabled data_sampling_enabled flops_profiler_enabled "
        "fp16_auto_cast fp16_master_weights_and_gradients is_deepcompile_enabled random_ltd_enabled "
        "sparse_gradients_enabled torch_autocast_enabled zero_cpu_offload zero_offload_optimizer zero_offload_param "
        "zero_quantized_gradients zero_quantized_nontrainable_weights zero_quantized_weights zero_use_cpu_optimizer",
        "false or None: the config refuses what would make them true, or nothing does it",
    ),
)
"""The names that the engine adds to torch.nn.Module's."""

TABLES: dict[str, tuple[PublicName, ...]] = {
    "torch.nn.Module": MODULE_CALLS,
    "transformers": TRANSFORMERS_CALLS,
    "peft": PEFT_CALLS,
    "the optimizer": OPTIMIZER_CALLS,
    "the scheduler": SCHEDULER_CALLS,
    "the engine": ENGINE_CALLS,
}
"""The tables of docs/calls.md, by title."""

REFUSED: dict[str, str] = {
    name: call.remark
    for table in (MODULE_CALLS, TRANSFORMERS_CALLS, PEFT_CALLS)
    for call in table
    if call.answer is Answer.REFUSED
    for name in call.names
}
"""Methods that are refused on every module that has them, and what to do instead."""


def answer_of(name: str, *tables: Sequence[PublicName]) -> Answer | None:
    """Return the answer of a name in the first table that has it; None if none has."""
    return next((call.answer for table in tables for call in table if name in call.names), None)


def markdown() -> str:
    """Return the tables of docs/calls.md."""
    return "\n".join(line for title, table in TABLES.items() for line in _section(title, table))


def _section(title: str, table: Sequence[PublicName]) -> Iterator[str]:
    yield from (f"### {title[0].upper()}{title[1:]}" if " " in title else f"### {title}", "")
    yield from ("| names | answer | remark |", "|---|---|---|")
    for call in table:
        yield f"| {', '.join(f'`{name}`' for name in call.names)} | {call.answer.value} | {call.remark} |"
    yield ""
