"""Read a config's settings outside of the decision, key by key.

Every key is either used, known to have no effect on training, or refused with the reason; none is ignored (D15). All
problems are collected and raised at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.spellings import is_absent, nearest, show
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.settings.components import read_component
from tpinit.runtime.settings.schema import BatchSizes, LossScaling, Settings
from tpinit.spec.vocabulary import DType

__all__ = ["check_section", "read_settings"]

# The resolver reads these; the runtime takes them from the decision.
_DECIDED = {"tensor_parallel", "bf16", "bfloat16", "fp16"}
_USED = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "dataloader_drop_last",
}
# These change what DeepSpeed prints or measures, or how its own kernels run: nothing of this runtime.
_COSMETIC = {
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "log_level",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "disable_python_gc",
}
# Legal only with this value, which has no effect.
_NEUTRAL: dict[str, object] = {
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    "gradient_allreduce_op": "mean",
    "managed_gradient_accumulation": True,
    "sparse_gradients": False,
    "disable_allgather": False,
    "communication_data_type": None,
    "sequence_parallel_size": 1,
}
# Sections that are legal while `enabled` is false or absent.
_SWITCHED = {
    "amp",
    "torch_autocast",
    "flops_profiler",
    "tensorboard",
    "wandb",
    "comet",
    "csv_monitor",
    "comms_logger",
    "autotuning",
    "hybrid_engine",
    "data_efficiency",
    "curriculum_learning",
    "eigenvalue",
    "progressive_layer_drop",
    "elasticity",
    "nebula",
}
# These choose which layers are sharded: see `planning.requests`.
_PLANNED = {"partition_config", "preset_model", "vocab_parallel_lm_head"}
_SECTION_NEUTRAL: dict[str, object] = {
    "tp_overlap_comm": False,
    "keep_module_on_host": False,
    "injection_policy_tuple": None,
    "replace_with_kernel_inject": False,
    "kernel_inject": False,
    "vocab_parallel_ce_backend": "torch",
    "tp_grain_size": 1,
}
# Why a value is not implemented, by the last part of its path.
_SECTION_REASONS = {
    "tp_overlap_comm": "all-reduces are not overlapped with computation",
    "keep_module_on_host": "the module is always moved to this rank's device",
    "injection_policy_tuple": "choose the sharded layers in partition_config",
    "replace_with_kernel_inject": "no inference kernels are injected",
    "vocab_parallel_ce_backend": "the cross-entropy over a sharded vocabulary uses torch",
    "tp_grain_size": "shards are whole heads and single features",
}
_PRECISION_NEUTRAL: dict[str, dict[str, object]] = {
    "bf16": {
        "immediate_grad_update": True,
        "check_overflow": False,
        "bf16_master_weights_and_grads": False,
        "bf16_optimizer_states": False,
    },
    "fp16": {"auto_cast": False, "fp16_master_weights_and_grads": False},
}
_PRECISION_NEUTRAL["bfloat16"] = _PRECISION_NEUTRAL["bf16"]
_SCALING = ("loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale")

Refusals = list[str]


def check_section(carried: Mapping[str, object]) -> None:
    """Raise UnsupportedError for every setting of the `tensor_parallel` section that is not implemented.

    `carried` holds the settings that the decision passes on unread, by name. Values without an effect pass, and those
    that choose the sharded layers, which planning reads.
    """
    refusals: Refusals = []
    for path, value in _section_settings(carried):
        key = path.rpartition(".")[2]
        if path in _PLANNED or is_absent(value) or (key in _SECTION_NEUTRAL and value == _SECTION_NEUTRAL[key]):
            continue
        reason = _SECTION_REASONS.get(key, "it is not implemented")
        refusals.append(f"tensor_parallel.{path} = {show(value)}: {reason}")
    _refuse(refusals)


def _section_settings(carried: Mapping[str, object]) -> list[tuple[str, object]]:
    """Return (path below the section, value) of each setting, those of a `tp` object one by one."""
    settings: list[tuple[str, object]] = []
    for key, value in carried.items():
        if key in ("tp", "tensor_parallel") and isinstance(value, Mapping):
            settings += [(f"tp.{inner}", inner_value) for inner, inner_value in value.items()]
        else:
            settings.append((key, value))
    return settings


def read_settings(config: Mapping[str, object], dp_size: int, dtype: DType | None) -> Settings:
    """Return the settings of a config (plain data) for `dp_size` data-parallel ranks. `dtype` is the decision's.

    Raises ConfigError for malformed values and for batch sizes that do not multiply up, UnsupportedError for keys
    that would change training and are not implemented. An absent `gradient_clipping` is 1.0 and 0 turns it off, as in
    DeepSpeed 0.19.8.
    """
    problems: list[Problem] = []
    refusals: Refusals = []
    for key, value in config.items():
        _check_key(key, value, refusals)
    for section in ("bf16", "bfloat16", "fp16"):
        _check_precision(section, config.get(section), problems, refusals)
    fp16 = config.get("fp16")
    settings = Settings(
        batch=_batch_sizes(config, dp_size, problems),
        clipping=_number(config, "gradient_clipping", 1.0, problems),
        optimizer=read_component(config, "optimizer", problems),
        scheduler=read_component(config, "scheduler", problems),
        scaling=_loss_scaling(fp16 if dtype is DType.FP16 and isinstance(fp16, Mapping) else {}, problems),
        drop_last=_flag(config, "dataloader_drop_last", problems),
    )
    if problems:
        raise ConfigError(problems)
    _refuse(refusals)
    return settings


def _refuse(refusals: Refusals) -> None:
    if refusals:
        lines = "\n".join(f"  {line}" for line in refusals)
        raise UnsupportedError(
            f"these settings of the config are not implemented, and are not ignored:\n{lines}\n"
            "  fix: take each of them out of the config"
        )


def _check_key(key: str, value: object, refusals: Refusals) -> None:
    if key in _DECIDED or key in _USED or key in _COSMETIC or value is None:
        return
    if key in _NEUTRAL:
        if value != _NEUTRAL[key]:
            refusals.append(f"{key} = {show(value)}: only {show(_NEUTRAL[key])} is implemented")
    elif key in _SWITCHED:
        if not isinstance(value, Mapping) or value.get("enabled", False) is not False:
            refusals.append(f"{key} = {show(value)}: it is not implemented")
    elif key == "zero_optimization":
        if value is not False and not (isinstance(value, Mapping) and value.get("stage", 0) == 0):
            refusals.append(f"{key} = {show(value)}: only stage 0 is implemented")
    else:
        near = nearest(key, _USED | _DECIDED | _COSMETIC)
        hint = f"; did you mean {near}?" if near else ""
        refusals.append(f"{key} = {show(value)}: this key is not implemented{hint}")


def _check_precision(section: str, value: object, problems: list[Problem], refusals: Refusals) -> None:
    if not isinstance(value, Mapping):
        return
    defaults = _PRECISION_NEUTRAL[section]
    known = {"enabled", *(("consecutive_hysteresis", *_SCALING) if section == "fp16" else ())}
    for key, setting in value.items():
        path = f"{section}.{key}"
        if key in known or setting is None:
            continue
        if key not in defaults:
            near = nearest(key, [*known, *defaults])
            fix = f"did you mean {section}.{near}?" if near else f"take {path} out"
            problems.append(Problem(path, show(setting), "this key is not known", fix))
        elif setting != defaults[key] and not (section != "fp16" and key == "immediate_grad_update"):
            refusals.append(f"{path} = {show(setting)}: only {show(defaults[key])} is implemented")


def _batch_sizes(config: Mapping[str, object], dp_size: int, problems: list[Problem]) -> BatchSizes:
    """Compute the missing batch sizes from the given ones, as DeepSpeed does; add a Problem if there is a remainder.

    They count data-parallel ranks (D16).
    """
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    given = [_count(config, name, problems) for name in names]
    train, micro, steps = given
    if train is None and micro is None:
        # A batch size is needed for training_data only; callers may pass batches of any size to the engine.
        return BatchSizes(None, None, steps or 1)
    if steps is None:
        steps = train // (micro * dp_size) if train is not None and micro is not None else 1
    if micro is None and train is not None:
        micro = train // (dp_size * steps)
    if train is None and micro is not None:
        train = micro * steps * dp_size
    if micro is None or train != micro * steps * dp_size or micro < 1:
        shown = ", ".join(f"{name} {value}" for name, value in zip(names, given, strict=True) if value is not None)
        problems.append(
            Problem(
                "train_batch_size",
                shown,
                f"the batch sizes do not multiply up over {dp_size} data-parallel ranks: train_batch_size must be "
                f"train_micro_batch_size_per_gpu x gradient_accumulation_steps x {dp_size}, all at least 1",
                "give two of the three and leave the third out",
            )
        )
    return BatchSizes(train, micro, max(steps, 1))


def _count(config: Mapping[str, object], key: str, problems: list[Problem]) -> int | None:
    value = config.get(key)
    if is_absent(value):
        return None
    if type(value) is int and value >= 1:
        return value
    problems.append(Problem(key, show(value), "this must be an integer of at least 1", f"write {key}: 1, or more"))
    return None


def _number(config: Mapping[str, object], key: str, default: float, problems: list[Problem], path: str = "") -> float:
    value = config.get(key)
    if is_absent(value):
        return default
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 and value != float("inf"):
        return float(value)
    problems.append(Problem(path or key, show(value), "this must be a number, at least 0", f"write {key}: {default}"))
    return default


def _flag(config: Mapping[str, object], key: str, problems: list[Problem], path: str = "") -> bool:
    value = config.get(key)
    if is_absent(value) or isinstance(value, bool):
        return value is True
    problems.append(Problem(path or key, show(value), "this must be true or false", f"write {key}: false"))
    return False


def _loss_scaling(fp16: Mapping[str, object], problems: list[Problem]) -> LossScaling:
    defaults = LossScaling()

    def integer(key: str, default: int, minimum: int) -> int:
        value = fp16.get(key)
        if is_absent(value):
            return default
        if type(value) is int and value >= minimum:
            return value
        problems.append(
            Problem(f"fp16.{key}", show(value), f"this must be an integer of at least {minimum}", f"write {default}")
        )
        return default

    return LossScaling(
        static=_number(fp16, "loss_scale", defaults.static, problems, "fp16.loss_scale"),
        initial_scale_power=integer("initial_scale_power", defaults.initial_scale_power, 0),
        loss_scale_window=integer("loss_scale_window", defaults.loss_scale_window, 1),
        hysteresis=integer("hysteresis", defaults.hysteresis, 1),
        consecutive_hysteresis=_flag(fp16, "consecutive_hysteresis", problems, "fp16.consecutive_hysteresis"),
        min_loss_scale=_number(fp16, "min_loss_scale", defaults.min_loss_scale, problems, "fp16.min_loss_scale"),
    )
