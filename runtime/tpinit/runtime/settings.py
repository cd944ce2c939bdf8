"""The settings of a run, from the rest of the config: batch sizes, clipping, optimizer, scheduler, loss scaling.

Every key is either honoured, known to change nothing, or refused with the reason: none is ignored (D8). All
that is wrong is collected and raised once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.spellings import is_absent, nearest, show
from tpinit.runtime.errors import UnsupportedError
from tpinit.spec.vocabulary import DType

__all__ = ["BatchSizes", "ComponentSettings", "LossScaling", "Settings", "check_section", "read_settings"]


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """Batch sizes in samples; `train = micro x accumulation x data-parallel size`. None where nobody gave one."""

    train: int | None
    micro: int | None
    accumulation: int


@dataclass(frozen=True, slots=True)
class ComponentSettings:
    """A component by name with its parameters: an optimizer or a scheduler."""

    kind: str
    params: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class LossScaling:
    """Loss scaling for fp16: `static` if not 0, else dynamic, with DeepSpeed's names and defaults."""

    static: float = 0.0
    initial_scale_power: int = 16
    loss_scale_window: int = 1000
    hysteresis: int = 2
    consecutive_hysteresis: bool = False
    min_loss_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the engine honours beside the decision. `clipping` is a norm; 0 means no clipping."""

    batch: BatchSizes = field(default_factory=lambda: BatchSizes(None, None, 1))
    clipping: float = 1.0
    optimizer: ComponentSettings | None = None
    scheduler: ComponentSettings | None = None
    scaling: LossScaling = field(default_factory=LossScaling)
    drop_last: bool = False


# Read by the resolver; the runtime has them from the decision.
_DECIDED = {"tensor_parallel", "bf16", "bfloat16", "fp16"}
_HONOURED = {
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "dataloader_drop_last",
}
# Change what is shown or measured, or how DeepSpeed's own kernels run: never the numbers of this runtime.
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
# Legal only with the value that changes nothing.
_DEFAULTS: dict[str, object] = {
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    "gradient_allreduce_op": "mean",
    "managed_gradient_accumulation": True,
    "sparse_gradients": False,
    "disable_allgather": False,
    "communication_data_type": None,
    "sequence_parallel_size": 1,
}
# Sections that are off unless they say otherwise.
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
# Say which layers are cut: see `plan.partition`.
_PLANNED = {"partition_config", "preset_model", "vocab_parallel_lm_head"}
_SECTION_DEFAULTS: dict[str, object] = {
    "tp_overlap_comm": False,
    "keep_module_on_host": False,
    "injection_policy_tuple": None,
    "replace_with_kernel_inject": False,
    "kernel_inject": False,
    "vocab_parallel_ce_backend": "torch",
    "tp_grain_size": 1,
}
_SECTION_REASONS = {
    "tp_overlap_comm": "all-reduces are not overlapped with computation",
    "keep_module_on_host": "the module is always moved to this rank's device",
    "injection_policy_tuple": "say which layers are cut in partition_config",
    "replace_with_kernel_inject": "no inference kernels are injected",
    "vocab_parallel_ce_backend": "the cross-entropy of a cut vocabulary is torch's",
    "tp_grain_size": "shards are whole heads and single features",
}
_PRECISION_DEFAULTS: dict[str, dict[str, object]] = {
    "bf16": {
        "immediate_grad_update": True,
        "check_overflow": False,
        "bf16_master_weights_and_grads": False,
        "bf16_optimizer_states": False,
    },
    "fp16": {"auto_cast": False, "fp16_master_weights_and_grads": False},
}
_PRECISION_DEFAULTS["bfloat16"] = _PRECISION_DEFAULTS["bf16"]
_SCALING = ("loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale")

Refusals = list[str]


def check_section(carried: Mapping[str, object]) -> None:
    """Raise UnsupportedError for every setting of the section that this runtime does not honour yet.

    `carried` is what the decision hands through (D10). A value that changes nothing passes, and what says which
    layers are cut: the plan honours that.
    """
    refusals: Refusals = []
    for path, value in _leaves(carried):
        key = path.rpartition(".")[2]
        if path in _PLANNED or is_absent(value) or (key in _SECTION_DEFAULTS and value == _SECTION_DEFAULTS[key]):
            continue
        reason = _SECTION_REASONS.get(key, "this runtime does not honour it")
        refusals.append(f"tensor_parallel.{path} = {show(value)}: {reason}")
    _refuse(refusals)


def _leaves(carried: Mapping[str, object]) -> list[tuple[str, object]]:
    leaves: list[tuple[str, object]] = []
    for key, value in carried.items():
        if key in ("tp", "tensor_parallel") and isinstance(value, Mapping):
            leaves += [(f"tp.{inner}", held) for inner, held in value.items()]
        else:
            leaves.append((key, value))
    return leaves


def read_settings(config: Mapping[str, object], dp_size: int, dtype: DType | None) -> Settings:
    """Return the settings of a config (plain data) for `dp_size` data-parallel ranks.

    Raises ConfigError for values that are malformed or do not add up, UnsupportedError for keys that would
    change training and are not implemented. An absent `gradient_clipping` is 1.0 and 0 turns it off, as in
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
        batch=_batch(config, dp_size, problems),
        clipping=_number(config, "gradient_clipping", 1.0, problems),
        optimizer=_part(config, "optimizer", problems),
        scheduler=_part(config, "scheduler", problems),
        scaling=_scaling(fp16 if dtype is DType.FP16 and isinstance(fp16, Mapping) else {}, problems),
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
            f"this runtime does not honour, and will not ignore:\n{lines}\n  fix: take each of them out of the config"
        )


def _check_key(key: str, value: object, refusals: Refusals) -> None:
    if key in _DECIDED or key in _HONOURED or key in _COSMETIC or value is None:
        return
    if key in _DEFAULTS:
        if value != _DEFAULTS[key]:
            refusals.append(f"{key} = {show(value)}: only {show(_DEFAULTS[key])} is implemented")
    elif key in _SWITCHED:
        if not isinstance(value, Mapping) or value.get("enabled", False) is not False:
            refusals.append(f"{key} = {show(value)}: it is not implemented")
    elif key == "zero_optimization":
        if value is not False and not (isinstance(value, Mapping) and value.get("stage", 0) == 0):
            refusals.append(f"{key} = {show(value)}: only stage 0 is implemented")
    else:
        near = nearest(key, _HONOURED | _DECIDED | _COSMETIC)
        hint = f"; did you mean {near}?" if near else ""
        refusals.append(f"{key} = {show(value)}: this key is not implemented{hint}")


def _check_precision(section: str, value: object, problems: list[Problem], refusals: Refusals) -> None:
    if not isinstance(value, Mapping):
        return
    defaults = _PRECISION_DEFAULTS[section]
    known = {"enabled", *(("consecutive_hysteresis", *_SCALING) if section == "fp16" else ())}
    for key, held in value.items():
        path = f"{section}.{key}"
        if key in known or held is None:
            continue
        if key not in defaults:
            near = nearest(key, [*known, *defaults])
            fix = f"did you mean {section}.{near}?" if near else f"take {path} out"
            problems.append(Problem(path, show(held), "this key is not known", fix))
        elif held != defaults[key] and not (section != "fp16" and key == "immediate_grad_update"):
            refusals.append(f"{path} = {show(held)}: only {show(defaults[key])} is implemented")


def _batch(config: Mapping[str, object], dp_size: int, problems: list[Problem]) -> BatchSizes:
    """Fill the batch sizes that are missing from those that are given, as DeepSpeed does; refuse a remainder."""
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    given = [_count(config, name, problems) for name in names]
    train, micro, steps = given
    if train is None and micro is None:
        # No data is loaded here without a size, so a caller who brings his own batches needs none.
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
                f"the batch does not add up over {dp_size} data-parallel ranks: train_batch_size must be "
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


def _scaling(fp16: Mapping[str, object], problems: list[Problem]) -> LossScaling:
    base = LossScaling()

    def whole(key: str, default: int, least: int) -> int:
        value = fp16.get(key)
        if is_absent(value):
            return default
        if type(value) is int and value >= least:
            return value
        problems.append(
            Problem(f"fp16.{key}", show(value), f"this must be an integer of at least {least}", f"write {default}")
        )
        return default

    return LossScaling(
        static=_number(fp16, "loss_scale", base.static, problems, "fp16.loss_scale"),
        initial_scale_power=whole("initial_scale_power", base.initial_scale_power, 0),
        loss_scale_window=whole("loss_scale_window", base.loss_scale_window, 1),
        hysteresis=whole("hysteresis", base.hysteresis, 1),
        consecutive_hysteresis=_flag(fp16, "consecutive_hysteresis", problems, "fp16.consecutive_hysteresis"),
        min_loss_scale=_number(fp16, "min_loss_scale", base.min_loss_scale, problems, "fp16.min_loss_scale"),
    )


# What each component may be given, beside lists for pairs such as betas.
_PARAMS: dict[str, dict[str, tuple[str, ...]]] = {
    "optimizer": {
        "adam": ("lr", "betas", "eps", "weight_decay", "bias_correction", "adam_w_mode", "torch_adam", "amsgrad"),
        "adamw": ("lr", "betas", "eps", "weight_decay", "bias_correction", "adam_w_mode", "torch_adam", "amsgrad"),
        "sgd": ("lr", "momentum", "dampening", "weight_decay", "nesterov"),
    },
    "scheduler": {
        "warmuplr": ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type", "last_batch_iteration"),
        "warmupdecaylr": (
            "total_num_steps",
            "warmup_min_lr",
            "warmup_max_lr",
            "warmup_num_steps",
            "warmup_type",
            "last_batch_iteration",
        ),
    },
}
_NAMES = {"optimizer": ("Adam", "AdamW", "SGD"), "scheduler": ("WarmupLR", "WarmupDecayLR")}


def _part(config: Mapping[str, object], key: str, problems: list[Problem]) -> ComponentSettings | None:
    section = config.get(key)
    if section is None:
        return None
    names = _NAMES[key]
    form = f'write {key}: {{"type": "{names[0]}", "params": {{...}}}}'
    if not isinstance(section, Mapping):
        problems.append(Problem(key, show(section), "this must be an object with type and params", form))
        return None
    problems += [
        Problem(f"{key}.{inner}", show(section[inner]), "this key is not known", form)
        for inner in section
        if inner not in ("type", "params")
    ]
    kind, params = section.get("type"), section.get("params") or {}
    legal = _PARAMS[key].get(kind.lower()) if isinstance(kind, str) else None
    if legal is None or not isinstance(kind, str):
        problems.append(Problem(f"{key}.type", show(kind), f"the types that are implemented: {', '.join(names)}", form))
        return None
    if not isinstance(params, Mapping):
        problems.append(Problem(f"{key}.params", show(params), "this must be an object", form))
        return None
    for name, value in params.items():
        path = f"{key}.params.{name}"
        if name not in legal:
            near = nearest(name, legal) or ", ".join(legal)
            problems.append(Problem(path, show(value), f"{kind} has no such parameter", f"did you mean {near}?"))
        elif value == "auto" or not _CHECKS.get(name, _is_number)(value):
            problems.append(Problem(path, show(value), f"this must be {_WORDS.get(name, 'a number')}", "write one"))
    if kind.lower() == "warmupdecaylr" and "total_num_steps" not in params:
        problems.append(Problem(f"{key}.params.total_num_steps", "", f"{kind} needs it", "add the number of steps"))
    return ComponentSettings(kind.lower(), dict(params))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _is_pair(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))


_CHECKS: dict[str, Callable[[object], bool]] = {
    "betas": _is_pair,
    "warmup_type": lambda value: value in ("log", "linear"),
    **dict.fromkeys(
        ("bias_correction", "adam_w_mode", "torch_adam", "amsgrad", "nesterov"), lambda value: isinstance(value, bool)
    ),
    **dict.fromkeys(
        ("warmup_num_steps", "total_num_steps", "last_batch_iteration"),
        lambda value: type(value) is int and value >= -1,
    ),
}
_WORDS = {
    "betas": "two numbers",
    "warmup_type": '"log" or "linear"',
    **dict.fromkeys(("bias_correction", "adam_w_mode", "torch_adam", "amsgrad", "nesterov"), "true or false"),
    **dict.fromkeys(("warmup_num_steps", "total_num_steps", "last_batch_iteration"), "an integer"),
}
