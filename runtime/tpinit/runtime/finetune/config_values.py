"""What a config leaves to the program that trains ("auto", or nothing): batch sizes, learning rate, steps."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.spellings import AUTO, show
from tpinit.runtime.finetune.options import DEFAULT_LR, TuneOptions
from tpinit.runtime.settings.batch import BATCH_KEYS

__all__ = ["completed_config"]

_TRAIN, _MICRO, _ = BATCH_KEYS
_TRAINER = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}  # what transformers' Trainer fills in


def completed_config(options: TuneOptions, steps: int) -> tuple[dict[str, object], list[str]]:
    """Return the config with what it leaves out, and a sentence for each value that was filled in.

    `steps` are all updates of the run. Raises ConfigError for an option that the config contradicts.
    """
    config = deepcopy(options.config)
    filled: list[str] = []
    problems: list[Problem] = []
    _fill_batch(config, options.micro, filled, problems)
    _fill_optimizer(config, options.lr, filled, problems)
    _fill_schedule(config, options.warmup, steps, filled, problems)
    if problems:
        raise ConfigError(problems)
    return config, filled


def _fill_batch(config: dict[str, object], micro: int | None, filled: list[str], problems: list[Problem]) -> None:
    given = {key: config[key] for key in BATCH_KEYS if config.get(key) not in (None, AUTO)}
    for key in BATCH_KEYS:
        if key not in given:
            config.pop(key, None)
    if micro is not None and given.get(_MICRO, micro) != micro:
        problems.append(_contradiction(_MICRO, config, "--micro-batch", micro))
    if _MICRO not in given and (micro is not None or _TRAIN not in given):
        config[_MICRO] = micro or 1
        filled.append(f"{_MICRO} = {micro or 1}")


def _fill_optimizer(config: dict[str, object], lr: float | None, filled: list[str], problems: list[Problem]) -> None:
    if config.get("optimizer") in (None, AUTO):
        config["optimizer"] = {"type": "AdamW", "params": {"lr": lr or DEFAULT_LR}}
        filled.append(f"optimizer = AdamW, lr {lr or DEFAULT_LR:g}")
        return
    section = config["optimizer"]
    if not isinstance(section, dict):
        return  # malformed: initialize says so
    params = section.setdefault("params", {})
    if not isinstance(params, dict):
        return
    for key, value in {"lr": lr or DEFAULT_LR, **_TRAINER}.items():
        if params.get(key) == AUTO or (key == "lr" and lr is not None and params.get(key) is None):
            params[key] = value
            filled.append(f"optimizer.params.{key} = {value}")
    if lr is not None and params["lr"] != lr:
        problems.append(_contradiction("optimizer.params.lr", params, "--lr", lr))


def _fill_schedule(
    config: dict[str, object], warmup: int | None, steps: int, filled: list[str], problems: list[Problem]
) -> None:
    lr = _params(config, "optimizer").get("lr", 1e-3)
    if config.get("scheduler") in (None, AUTO) and warmup:
        params = {"warmup_min_lr": 0, "warmup_max_lr": lr, "warmup_num_steps": warmup, "warmup_type": "linear"}
        config["scheduler"] = {"type": "WarmupLR", "params": params}
        filled.append(f"scheduler = WarmupLR, linear over {warmup} updates")
        return
    params = _params(config, "scheduler")
    for key, value in (
        ("warmup_min_lr", 0),
        ("warmup_max_lr", lr),
        ("warmup_num_steps", warmup or 0),
        ("total_num_steps", steps),
    ):
        if params.get(key) == AUTO:
            params[key] = value
            filled.append(f"scheduler.params.{key} = {value}")
    if warmup is not None and params.get("warmup_num_steps", 0) != warmup:
        problems.append(_contradiction("scheduler.params.warmup_num_steps", params, "--warmup", warmup))


def _params(config: Mapping[str, object], name: str) -> dict[str, Any]:
    section = config.get(name)
    params = section.get("params") if isinstance(section, dict) else None
    return params if isinstance(params, dict) else {}


def _contradiction(path: str, held: Mapping[str, Any], option: str, value: object) -> Problem:
    given = held.get(path.rpartition(".")[2])
    return Problem(
        path, show(given), f"{option} {value} contradicts it", f'write "auto" in the config, or leave {option} out'
    )
