"""The libraries that a rank can run, with one interface. The server imports one before it forks the ranks."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["IMPLEMENTATIONS", "TrainingLibrary"]

_CHECK = "check_dataloader_inputs_same_across_ranks"


@dataclass(frozen=True, slots=True)
class TrainingLibrary:
    """One library: its two functions, and access to what its engine does.

    `initialize(**arguments)` returns the engine. `input_check(engine)` returns a function that runs the engine's check
    of the first batch on its argument and raises if the check does, or None if the engine has no check.
    `claims(engine)` returns the batch and world sizes that the engine reports. `loss_scale(engine)` is the present
    factor of the gradients. `prepare` runs once, before the ranks are forked. `hooks_gradients`: its engine takes hooks
    on the gradients of sharded weights.
    """

    name: str
    version: str
    tp_model_init: Callable[..., nn.Module]
    initialize: Callable[..., Any]
    input_check: Callable[[Any], Callable[[dict[str, Any]], None] | None]
    claims: Callable[[Any], dict[str, Any]]
    loss_scale: Callable[[Any], float]
    prepare: Callable[[], None]
    hooks_gradients: bool = True


def _deepspeed() -> TrainingLibrary:
    # `import_module`, because the environment in which this file is type-checked has no DeepSpeed.
    deepspeed = importlib.import_module("deepspeed")

    def initialize(**arguments: Any) -> Any:
        return deepspeed.initialize(**arguments)[0]

    def prepare() -> None:
        # The only operator that gloo worlds compile: build it once here, before the ranks are forked.
        backend = importlib.import_module("deepspeed.comm.torch")
        if hasattr(backend, "build_shm_op"):
            backend.build_shm_op()

    def claims(engine: Any) -> dict[str, Any]:
        groups = importlib.import_module("deepspeed.utils.groups")
        size = getattr(engine, "autotp_size", None)
        return {
            **_batch(engine),
            "tp_size": size() if size is not None else None,
            "dp_world_size": int(groups._get_data_parallel_world_size()),
        }

    def shard_at_once(*arguments: Any, **named: Any) -> Any:
        # Releases whose `tp_model_init` shards at once need DeepSpeed's own backend first.
        deepspeed.init_distributed(verbose=False)
        return deepspeed.tp_model_init(*arguments, **named)

    records = importlib.util.find_spec("deepspeed.runtime.tensor_parallel.init_utils") is not None
    call = deepspeed.tp_model_init if records else shard_at_once
    return TrainingLibrary(
        "deepspeed", str(deepspeed.__version__), call, initialize, _deepspeed_check, claims, lambda _: 1.0, prepare
    )


def _deepspeed_check(engine: Any) -> Callable[[dict[str, Any]], None] | None:
    """Return DeepSpeed's forward pre-hook that compares the first batch; it removes itself after it has passed."""
    hooks = [hook for hook in engine.module._forward_pre_hooks.values() if getattr(hook, "__name__", "") == _CHECK]
    if not hooks:
        return None
    return lambda inputs: hooks[0](engine.module, (), inputs)


def _tpinit() -> TrainingLibrary:
    runtime = importlib.import_module("tpinit.runtime")
    metadata = importlib.import_module("importlib.metadata")

    def initialize(**arguments: Any) -> Any:
        return runtime.initialize(**arguments)[0]

    def input_check(engine: Any) -> Callable[[dict[str, Any]], None] | None:
        def check(inputs: dict[str, Any]) -> None:
            engine._inputs_checked = engine.groups.tp.group is None
            with torch.no_grad():
                engine(**inputs)

        return check

    def claims(engine: Any) -> dict[str, Any]:
        return {
            **_batch(engine),
            "tp_size": engine.decision.tp_size.value,
            "dp_world_size": engine.groups.dp.size,
            "row": engine.decision.row,
        }

    return TrainingLibrary(
        "tpinit",
        metadata.version("tpinit"),
        runtime.tp_model_init,
        initialize,
        input_check,
        claims,
        lambda engine: float(engine.loss_scale()),
        lambda: None,
        hooks_gradients=False,
    )


def _batch(engine: Any) -> dict[str, Any]:
    return {
        "train_batch_size": engine.train_batch_size(),
        "micro_batch_size": engine.train_micro_batch_size_per_gpu(),
        "accumulation_steps": engine.gradient_accumulation_steps(),
    }


IMPLEMENTATIONS: dict[str, Callable[[], TrainingLibrary]] = {"deepspeed": _deepspeed, "tpinit": _tpinit}
