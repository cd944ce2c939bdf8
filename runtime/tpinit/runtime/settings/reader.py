"""Read a config's settings outside of the decision, key by key.

Every key is either used, known to have no effect on training, or refused with the reason; none is ignored (D15). All
problems are collected and raised at once. The table of keys is in `keys`.
"""

from __future__ import annotations

from collections.abc import Mapping

from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.spellings import dtype_named, is_absent, nearest, show
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.settings.batch import read_batch_sizes
from tpinit.runtime.settings.components import read_component
from tpinit.runtime.settings.key_walk import Reading, check_keys
from tpinit.runtime.settings.schema import DEFAULT_CLIPPING, LARGEST_BUCKET, Averaging, LossScaling, Settings
from tpinit.runtime.settings.zero import read_zero_stage
from tpinit.spec.vocabulary import DType

__all__ = ["check_section", "read_settings"]

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


def check_section(carried: Mapping[str, object]) -> None:
    """Raise UnsupportedError for every setting of the `tensor_parallel` section that is not implemented.

    `carried` holds the settings that the decision passes on unread, by name. Values without an effect pass, and those
    that choose the sharded layers, which planning reads.
    """
    refusals: list[str] = []
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


def read_settings(
    config: Mapping[str, object], dp_size: int, dtype: DType | None, deepspeed_size: int | None = None
) -> Settings:
    """Return the settings of a config (plain data) for `dp_size` data-parallel ranks. `dtype` is the decision's.

    `deepspeed_size` is the number of ranks over which DeepSpeed 0.19.8 counts batch sizes: the world's, or `dp_size`
    where there is an mpu or a mesh (default). Raises ConfigError for malformed values and for batch sizes that do not
    multiply up, UnsupportedError for keys that would change training and are not implemented. An absent
    `gradient_clipping` is 1.0 and 0 turns it off, as in DeepSpeed 0.19.8.
    """
    reading = Reading()
    problems, refusals = reading.problems, reading.refusals
    check_keys(config, reading)
    for section in ("bf16", "bfloat16", "fp16"):
        _check_precision(section, config.get(section), problems, refusals)
    fp16 = config.get("fp16")
    optimizer = read_component(config, "optimizer", problems)
    clipping = _number(config, "gradient_clipping", DEFAULT_CLIPPING, problems)
    settings = Settings(
        batch=read_batch_sizes(config, dp_size, deepspeed_size or dp_size, problems, reading.notes),
        clipping=clipping,
        optimizer=optimizer,
        scheduler=read_component(config, "scheduler", problems),
        scaling=_loss_scaling(fp16 if dtype is DType.FP16 and isinstance(fp16, Mapping) else {}, problems),
        drop_last=_flag(config, "dataloader_drop_last", problems),
        averaging=_averaging(config, problems),
        zero_stage=read_zero_stage(config, dp_size, reading),
        notes=tuple(reading.notes),
    )
    _check_dp_size(config, dp_size, problems)
    if problems:
        raise ConfigError(problems)
    _refuse(refusals)
    return settings


def _check_dp_size(config: Mapping[str, object], dp_size: int, problems: list[Problem]) -> None:
    given = config.get("data_parallel_size")
    if not is_absent(given) and (type(given) is not int or given != dp_size):
        message = f"this run has {dp_size} data-parallel ranks: the ranks of the world over autotp_size"
        problems.append(Problem("data_parallel_size", show(given), message, f"write {dp_size}, or leave it out"))


def _averaging(config: Mapping[str, object], problems: list[Problem]) -> Averaging:
    predivide = _number(config, "gradient_predivide_factor", 1.0, problems)
    if predivide == 0:
        problems.append(Problem("gradient_predivide_factor", "0", "gradients are divided by this", "write 1.0"))
    operation = config.get("gradient_allreduce_op")
    if not is_absent(operation) and str(operation).lower() not in ("mean", "sum"):
        message = 'this must be "mean" or "sum"'
        problems.append(Problem("gradient_allreduce_op", show(operation), message, 'write "mean"'))
    fp32 = _flag(config, "fp32_allreduce", problems)
    given = config.get("communication_data_type")
    dtype = dtype_named(given.lower() if isinstance(given, str) else given)
    if not is_absent(given) and dtype is None:
        message = 'this must be "fp32", "fp16" or "bf16"'
        problems.append(Problem("communication_data_type", show(given), message, 'write "fp32", or leave it out'))
    if fp32 and dtype not in (None, DType.FP32):
        message = "fp32_allreduce asks for fp32"
        problems.append(Problem("communication_data_type", show(given), message, "leave one of the two out"))
    zero = config.get("zero_optimization")
    zero = zero if isinstance(zero, Mapping) else {}
    return Averaging(
        bucket=_bucket_size(zero, problems),
        overlap=is_absent(zero.get("overlap_comm"))
        or _flag(zero, "overlap_comm", problems, "zero_optimization.overlap_comm"),
        prescale=_flag(config, "prescale_gradients", problems),
        predivide=predivide or 1.0,
        mean=str(operation).lower() != "sum",
        dtype=DType.FP32 if fp32 else dtype,
    )


def _bucket_size(zero: Mapping[str, object], problems: list[Problem]) -> int:
    """Return the most elements of gradients that are sent at once."""
    value = zero.get("reduce_bucket_size")
    if is_absent(value):
        return LARGEST_BUCKET
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 1 and value == value // 1:
        return int(min(value, LARGEST_BUCKET))
    path = "zero_optimization.reduce_bucket_size"
    problems.append(Problem(path, show(value), "this must be an integer of at least 1", "write 5e8, or leave it out"))
    return LARGEST_BUCKET


def _refuse(refusals: list[str]) -> None:
    if refusals:
        lines = "\n".join(f"  {line}" for line in refusals)
        raise UnsupportedError(
            f"these settings of the config are not implemented, and are not ignored:\n{lines}\n"
            "  fix: take each of them out of the config"
        )


def _check_precision(section: str, value: object, problems: list[Problem], refusals: list[str]) -> None:
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
        elif value.get("enabled") is False:
            continue  # whatever it asks for is off
        elif setting != defaults[key] and not (section != "fp16" and key == "immediate_grad_update"):
            refusals.append(f"{path} = {show(setting)}: only {show(defaults[key])} is implemented")


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
