"""The runtime: tensor-parallel training, started by the rules of the contract. Torch is imported on first use.

`tp_model_init`, `initialize` and `set_autotp_mode` have DeepSpeed's signatures. The modules `groups.topology` and
`shards` are integer arithmetic and import without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tpinit.runtime.errors import (
        AgreementError,
        CheckpointError,
        CollectiveError,
        DataError,
        DeviceError,
        EngineError,
        GroupError,
        LoadError,
        MissingCallError,
        PlanError,
        UnsupportedError,
    )
    from tpinit.runtime.init.api import initialize, set_autotp_mode, tp_model_init
    from tpinit.runtime.init.from_pretrained import from_config, from_pretrained
    from tpinit.runtime.init.verify_step import verify_step
    from tpinit.runtime.planning import ParameterPlan, Plan
    from tpinit.runtime.recording.errors import RecordError
    from tpinit.runtime.training.engine import Engine
    from tpinit.runtime.training.exit_signal import TrainingStopped
    from tpinit.runtime.training.gathered import GatheredParameters

__all__ = [
    "AgreementError",
    "CheckpointError",
    "CollectiveError",
    "DataError",
    "DeviceError",
    "Engine",
    "EngineError",
    "GatheredParameters",
    "GroupError",
    "LoadError",
    "MissingCallError",
    "ParameterPlan",
    "Plan",
    "PlanError",
    "RecordError",
    "TrainingStopped",
    "UnsupportedError",
    "from_config",
    "from_pretrained",
    "initialize",
    "set_autotp_mode",
    "tp_model_init",
    "verify_step",
]

_MODULES = {
    "AgreementError": "errors",
    "CheckpointError": "errors",
    "CollectiveError": "errors",
    "DataError": "errors",
    "DeviceError": "errors",
    "Engine": "training.engine",
    "EngineError": "errors",
    "GatheredParameters": "training.gathered",
    "GroupError": "errors",
    "LoadError": "errors",
    "MissingCallError": "errors",
    "ParameterPlan": "planning",
    "Plan": "planning",
    "PlanError": "errors",
    "RecordError": "recording.errors",
    "TrainingStopped": "training.exit_signal",
    "UnsupportedError": "errors",
    "from_config": "init.from_pretrained",
    "from_pretrained": "init.from_pretrained",
    "initialize": "init.api",
    "set_autotp_mode": "init.api",
    "tp_model_init": "init.api",
    "verify_step": "init.verify_step",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
