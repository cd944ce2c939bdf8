"""The steps of one rank before the ranks compare: read the config, decide, make the plan, build the optimizer.

The user's model is not changed. These side effects remain: the dry runs of planning execute parts of the model, the
user's functions for the optimizer and its parameters are called, and a model that `from_pretrained` or `from_config`
built on the meta device gets placeholder parameters. Every step adds what it read to the rank's report, so that a
difference between ranks can be named even if a later step fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from tpinit.reference.config import ConfigReading, read_config
from tpinit.reference.errors import ConfigError, DecisionError, Problem, TpinitError
from tpinit.reference.objects import Resolver
from tpinit.reference.spellings import show
from tpinit.runtime.errors import UnsupportedError
from tpinit.runtime.groups.agreement import RankReport, flatten
from tpinit.runtime.groups.communicators import communicator_name, handle_kind
from tpinit.runtime.groups.device_mesh import mesh_tp_group
from tpinit.runtime.groups.digest import digest_model
from tpinit.runtime.groups.process_groups import group_size, ranks_of
from tpinit.runtime.init.call_registry import is_initialized, recorded_call, sharded_inside
from tpinit.runtime.init.choose_optimizer import choose_optimizer
from tpinit.runtime.loading.weight_loading import WeightSource
from tpinit.runtime.planning import Plan, make_plan
from tpinit.runtime.settings import Checks, Settings, check_section, read_checks, read_settings
from tpinit.runtime.training.engine import Engine
from tpinit.runtime.training.optimizer_kinds import OptimizerKind, class_name, classify, updates_each_alone
from tpinit.spec.vocabulary import Decision, Group, Outcome

__all__ = ["InitArgs", "Prepared", "prepare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InitArgs:
    """The arguments of `initialize`, `from_pretrained` or `from_config` that decide what the run is.

    `weights` is the model of the latter two on the meta device, with the source of its weights.
    """

    args: Any = None
    model: nn.Module | None = None
    optimizer: Optimizer | Callable[[Iterable[Any]], Optimizer] | None = None
    model_parameters: Iterable[Any] | Callable[[nn.Module], Iterable[Any]] | None = None
    training_data: Any = None
    lr_scheduler: Any = None
    mpu: Any = None
    config: Any = None
    mesh_param: Any = None
    config_params: Any = None
    example: Any = None
    plan: Any = None
    sequence_parallel: bool = False
    check_inputs_every: int = 1
    check_replicas_every: int = 100
    on_nonfinite: str = "raise"
    timeout: Any = None
    gather_logits: bool = False
    weights: WeightSource | None = None

    @staticmethod
    def from_locals(arguments: Mapping[str, Any]) -> InitArgs:
        """Return the arguments of a caller, given its `locals()`; the names that are not fields are ignored."""
        names = [field.name for field in fields(InitArgs)]
        return InitArgs(**{name: arguments[name] for name in names if name in arguments})


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that `initialize` needs once the ranks agree: decided, planned and checked."""

    model: nn.Module
    decision: Decision
    plan: Plan
    settings: Settings
    optimizer: Optimizer | None
    checks: Checks
    config: Mapping[str, Any]
    optimizer_kind: OptimizerKind | None = None


def prepare(init_args: InitArgs, report: RankReport, device: torch.device | None = None) -> Prepared:
    """Decide, plan, and build the optimizer; add to `report` what must be equal on the ranks.

    `device` is where the model is going to train: planning runs there what can't run where the model is.
    Raises any TpinitError. The user's model is unchanged then.
    """
    model = init_args.model
    if not isinstance(model, nn.Module):
        raise TpinitError(f"initialize needs a model: a torch.nn.Module, not {show(model)}")
    if is_initialized(model):
        raise TpinitError(
            "this model is already initialized: its parameters are sharded; build a new model for another run"
        )
    inside = sharded_inside(model)
    if inside is not None or isinstance(model, Engine):
        raise TpinitError(
            f"{inside or 'this model'} is part of a model that initialize has sharded, or a copy of one: it holds a "
            "rank's part; build a new model, and share no sharded module between two models"
        )
    _check_values(init_args, model)
    checks = Checks.from_arguments(init_args.check_inputs_every, init_args.check_replicas_every, init_args.on_nonfinite)
    report.fields["model.class"] = f"{type(model).__module__}.{type(model).__qualname__}"
    reading, decision = _decide(init_args, model, report)
    checks = read_checks(reading.config, checks)
    report.fields.update(flatten(asdict(checks), "checks"))
    check_section(decision.carried)
    dp_size = _dp_size(decision)
    # DeepSpeed takes the DP ranks of an mpu or a mesh, and the whole world without one (D16).
    counted = decision.world_size if init_args.mpu is None and init_args.mesh_param is None else dp_size
    settings = read_settings(reading.config, dp_size, decision.dtype.value, counted)
    _check_data(init_args, settings, report)
    plan = make_plan(
        model,
        decision.tp_size.value or 1,
        decision.carried,
        user_plan=init_args.plan,
        example=init_args.example,
        sequence_parallel=init_args.sequence_parallel,
        device=device,
    )
    if init_args.weights is not None:
        init_args.weights.meta_model.make_placeholders()
    # In row 2 the ranks may hold different parts of a model that something else has split: compare DP groups only.
    compared = report.fields if decision.tp_size.value is not None else report.replica
    optimizer = choose_optimizer(
        init_args.optimizer, init_args.model_parameters, init_args.lr_scheduler, model, settings, compared
    )
    kind = _optimizer_kind(optimizer, plan, settings, dp_size)
    compared["optimizer.kind"] = kind.value if kind is not None else None
    compared.update(_plan_fields(plan))
    compared.update(digest_model(model) if init_args.weights is None else init_args.weights.compared_fields())
    return Prepared(model, decision, plan, settings, optimizer, checks, reading.config, kind)


def _optimizer_kind(optimizer: Optimizer | None, plan: Plan, settings: Settings, dp_size: int) -> OptimizerKind | None:
    """Return what the optimizer needs; None where every rank updates whole parameters, all of them.

    Raises UnsupportedError for an optimizer that can't update a sharded model, or a share of the parameters (ZeRO).
    """
    shares = settings.zero_stage > 0 and dp_size > 1
    if optimizer is None or (plan.tp_size == 1 and not shares):
        return None
    kind = classify(optimizer)
    if shares and kind is OptimizerKind.WHOLE_TENSORS and (plan.tp_size > 1 or not updates_each_alone(optimizer)):
        raise UnsupportedError(
            f"zero_optimization.stage = {settings.zero_stage} with the optimizer {class_name(optimizer)}, which is not "
            "elementwise: write stage 0, or use AdamW or another elementwise optimizer (docs/optimizers.md); Muon and "
            "Adafactor may have any stage where the TP size is 1"
        )
    return kind


def _check_values(init_args: InitArgs, model: nn.Module) -> None:
    """Raise TpinitError for a model whose parameters have no values, and get none from a checkpoint."""
    without = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if without and init_args.weights is None:
        raise TpinitError(
            f"{len(without)} parameters are on the meta device and have no values ({without[0]}, ...): use "
            "tpinit.runtime.from_pretrained or from_config, or fill them before initialize"
        )


def _decide(init_args: InitArgs, model: nn.Module, report: RankReport) -> tuple[ConfigReading, Decision]:
    """Read the config and resolve the decision. Raises DecisionError for violations, ConfigError for bad input."""
    raw_config = _find_config(init_args)
    call = recorded_call(model)
    resolver = Resolver(dist.get_world_size(), group_size)
    report.fields["tp_model_init"] = "called" if call is not None else "not called"
    reading = read_config(raw_config, groups=resolver.groups)
    report.fields.update(flatten(reading.config, "config"))
    if call is not None and call.config is not None:
        _check_same_config(call.config, reading)
    decision = resolver.resolve(
        call=call.args if call is not None else None,
        config=reading,
        mpu=init_args.mpu,
        mesh_group=mesh_tp_group(init_args.mesh_param),
    )
    _report_decision(decision, report)
    if decision.outcome is Outcome.ERROR:
        raise DecisionError(decision)
    return reading, decision


def _find_config(init_args: InitArgs) -> Any:
    """Return the config from the argument that holds it; None without one. Raises TpinitError if several hold one."""
    candidates = {
        "config": init_args.config,
        "config_params": init_args.config_params,
        "args.deepspeed_config": getattr(init_args.args, "deepspeed_config", None),
    }
    found = {name: value for name, value in candidates.items() if value is not None}
    if len(found) > 1:
        raise TpinitError(f"more than one config was given: {', '.join(found)}; give only one of them")
    return next(iter(found.values()), None)


def _check_same_config(call_config: Any, reading: ConfigReading) -> None:
    of_call, of_initialize = flatten(read_config(call_config).config, ""), flatten(reading.config, "")
    differing = sorted(
        key
        for key in {*of_call, *of_initialize}
        if key not in of_call or key not in of_initialize or of_call[key] != of_initialize[key]
    )
    if differing:
        raise TpinitError(
            f"tp_model_init and initialize were given different configs; they differ in {', '.join(differing)}: "
            "give the config to initialize only"
        )


def _report_decision(decision: Decision, report: RankReport) -> None:
    source = decision.tp_group.source
    report.fields["decision.row"] = decision.row
    report.fields["decision.outcome"] = decision.outcome.value
    report.fields["decision.tp_size"] = decision.tp_size.value
    report.fields["decision.dtype"] = decision.dtype.value
    report.fields["decision.tp_group"] = source.value if source is not None else None
    report.fields["decision.violations"] = [
        [
            violation.code.value,
            # The groups themselves differ between ranks; the arguments they came from must not.
            [[one.source.value, None if isinstance(one.value, Group) else one.value] for one in violation.given],
        ]
        for violation in decision.violations
    ]
    report.fields["decision.dp_group"] = "given" if decision.dp_group is not None else "none"
    tp = decision.tp_group.value.handle if decision.tp_group.value is not None else None
    dp = decision.dp_group.handle if decision.dp_group is not None else None
    report.fields["decision.tp_group.kind"], report.fields["decision.dp_group.kind"] = handle_kind(tp), handle_kind(dp)
    report.tp_ranks, report.dp_ranks = ranks_of(tp), ranks_of(dp)
    report.tp_name, report.dp_name = communicator_name(tp), communicator_name(dp)


def _dp_size(decision: Decision) -> int:
    """Return the number of data-parallel ranks: the world size over the TP size; in row 2 the mpu's group size."""
    if decision.tp_size.value is not None:
        return max(1, decision.world_size // decision.tp_size.value)
    return decision.dp_group.size if decision.dp_group is not None else 1


def _check_data(init_args: InitArgs, settings: Settings, report: RankReport) -> None:
    if init_args.training_data is None:
        return
    if not hasattr(init_args.training_data, "__len__"):
        raise UnsupportedError("training_data has no length: iterable datasets are not implemented")
    if settings.batch.micro is None:
        problem = Problem(
            "train_micro_batch_size_per_gpu", "", "training_data needs a batch size", "add it to the config"
        )
        raise ConfigError([problem])
    report.fields["training_data.length"] = len(init_args.training_data)


def _plan_fields(plan: Plan) -> dict[str, object]:
    """Return what the ranks compare of a plan, by parameter, layer, block and stack of layers."""
    compared: dict[str, object] = {
        f"plan.{record.name}": [
            record.cut.value,
            record.shape,
            record.names,
            record.unit,
            record.fused_sizes,
            record.slices,
        ]
        for record in plan.parameters
    }
    compared.update({f"plan.layer {layer.module}": repr(layer) for layer in plan.layers})
    compared.update({f"plan.block {block.module}": repr(block) for block in plan.blocks})
    compared.update({f"plan.sequence {sequence.stack}": repr(sequence) for sequence in plan.sequences})
    return compared
