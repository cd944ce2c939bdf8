"""Names of DeepSpeed's engine that this engine does not have: each is refused with what to do instead."""

from __future__ import annotations

from tpinit.reference.spellings import nearest
from tpinit.runtime.errors import MissingCallError

__all__ = ["NOT_ON_THE_ENGINE", "missing_name"]

_CHECKPOINT = (
    "checkpoints are not implemented; engine.module.save_pretrained(folder) writes the whole model as a transformers "
    "directory, and engine.module.state_dict() with optimizer.state_dict() hold this rank's part"
)
_MODULE = "call engine.module.{name}(...)"
_ZERO = "ZeRO is not implemented, so there is no stage; read engine.settings"
_SETTINGS = "read engine.settings, engine.decision and engine.plan"

NOT_ON_THE_ENGINE: dict[str, str] = {
    **dict.fromkeys(("save_checkpoint", "load_checkpoint"), _CHECKPOINT),
    **dict.fromkeys(
        (
            "save_16bit_model",
            "save_fp16_model",
            "_consolidated_16bit_state_dict",
            "_zero3_consolidated_16bit_state_dict",
            "module_state_dict",
            "load_module_state_dict",
        ),
        "call engine.module.save_pretrained(folder), on every rank: it writes the whole model",
    ),
    **dict.fromkeys(
        (
            "state_dict",
            "load_state_dict",
            "generate",
            "modules",
            "named_modules",
            "children",
            "named_children",
            "buffers",
            "named_buffers",
            "to",
            "half",
            "bfloat16",
            "float",
            "cuda",
            "cpu",
            "compile",
            "apply",
            "requires_grad_",
            "get_submodule",
            "get_parameter",
            "register_forward_hook",
        ),
        _MODULE,
    ),
    **dict.fromkeys(("zero_optimization_stage", "zero_optimization", "zero_gather_16bit_weights_on_model_save"), _ZERO),
    **dict.fromkeys(("config", "bfloat16_enabled", "fp16_enabled", "gradient_clipping", "dump_state"), _SETTINGS),
    **dict.fromkeys(
        ("global_rank", "local_rank", "world_size"),
        "ask torch.distributed, or read LOCAL_RANK",
    ),
    "no_sync": "set gradient_accumulation_steps in the config: only its last backward averages",
    "set_gradient_accumulation_boundary": "set gradient_accumulation_steps in the config",
    "was_step_applied": "compare engine.skipped_steps before and after engine.step()",
    "global_samples": "multiply engine.global_steps by engine.train_batch_size()",
    "train_batch": "call engine(...), engine.backward(loss) and engine.step() for each micro batch",
    "eval_batch": "call engine.eval() and engine(...)",
    "training_dataloader": "use the loader that initialize returned",
    "monitor": "monitors are not implemented; log what engine(...) and engine.get_global_grad_norm() return",
    "destroy": "call torch.distributed.destroy_process_group() at the end of the program",
}
"""What to do instead, by the name of DeepSpeed's engine or of torch.nn.Module."""


def missing_name(name: str, known: list[str]) -> AttributeError:
    """Return the error for a name that the engine lacks. `known` are the names that it has.

    A name of DeepSpeed's engine gives MissingCallError, a TpinitError and an AttributeError: `hasattr` answers False.
    """
    if name in NOT_ON_THE_ENGINE:
        advice = NOT_ON_THE_ENGINE[name].replace("{name}", name)
        return MissingCallError(f"the engine has no {name}: {advice}")
    near = nearest(name, known) if not name.startswith("_") else None
    return AttributeError(f"the engine has no attribute {name}" + (f"; did you mean {near}?" if near else ""))
