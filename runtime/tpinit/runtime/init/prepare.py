"""What one rank does alone before all agree: read, decide, plan. Nothing here changes anything.

Every step adds what it learned to the rank's report, so that a difference between ranks has a name even
where a later step fails.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from tpinit.reference.config import ConfigReading, read_config
from tpinit.reference.errors import ConfigError, DecisionError, Problem, TpinitError
from tpinit.reference.objects import Resolver
from tpinit.reference.spellings import show
from tpinit.runtime.errors import PlanError, UnsupportedError
from tpinit.runtime.groups.agreement import RankReport, flatten
from tpinit.runtime.groups.device_mesh import mesh_tp_group
from tpinit.runtime.groups.digest import digest_model
from tpinit.runtime.groups.process_groups import group_size, ranks_of
from tpinit.runtime.init import call_registry as records
from tpinit.runtime.loading.weight_loading import WeightSource
from tpinit.runtime.planning import Plan, make_plan
from tpinit.runtime.settings import Settings, check_section, read_settings
from tpinit.runtime.training.optimizers import build_optimizer
from tpinit.spec.vocabulary import Decision, Group, Outcome

__all__ = ["InitArgs", "Prepared", "prepare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InitArgs:
    """The arguments of `initialize` that this step reads."""

    args: Any = None
    model: nn.Module | None = None
    optimizer: Any = None
    model_parameters: Iterable[Any] | Callable[[nn.Module], Iterable[Any]] | None = None
    training_data: Any = None
    lr_scheduler: Any = None
    mpu: Any = None
    config: Any = None
    mesh_param: Any = None
    config_params: Any = None
    example: Any = None
    plan: Any = None
    weights: WeightSource | None = None
    sequence_parallel: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is decided and checked: what remains is to do it."""

    model: nn.Module
    decision: Decision
    plan: Plan
    settings: Settings
    optimizer: Optimizer | None


def prepare(given: InitArgs, report: RankReport) -> Prepared:
    """Read, decide, plan and build, adding to `report` what every rank must have in common.

    Raises TpinitError of every kind; nothing of the user's was changed then.
    """
    model = given.model
    if not isinstance(model, nn.Module):
        raise TpinitError(f"initialize needs a model: a torch.nn.Module, not {show(model)}")
    if records.is_initialized(model):
        raise TpinitError("this model is already initialized: its parameters are cut; build it anew for another run")
    raw_config = _one_config(given)
    record = records.recorded_call(model)
    resolver = Resolver(dist.get_world_size(), group_size)
    report.fields["tp_model_init"] = "called" if record is not None else "not called"
    reading = read_config(raw_config, groups=resolver.groups)
    report.fields.update(flatten(reading.config, "config"))
    if record is not None and record.config is not None:
        _check_same_config(record.config, reading)
    decision = resolver.resolve(
        call=record.call if record is not None else None,
        config=reading,
        mpu=given.mpu,
        mesh_group=mesh_tp_group(given.mesh_param),
    )
    _report_decision(decision, report)
    if decision.outcome is Outcome.ERROR:
        raise DecisionError(decision)
    check_section(decision.carried)
    settings = read_settings(reading.config, _dp_size(decision), decision.dtype.value)
    _check_data(given, settings, report)
    plan = make_plan(
        model,
        decision.tp_size.value or 1,
        decision.carried,
        user_plan=given.plan,
        example=given.example,
        sequence_parallel=given.sequence_parallel,
    )
    if given.weights is not None:
        given.weights.blank.make_placeholders()
    # Row 2 leaves the model as it is, and other ranks may hold another part of it.
    fields = report.fields if decision.tp_size.value is not None else report.replica
    optimizer = _optimizer(given, model, settings, fields)
    fields.update(
        {
            f"plan.{one.name}": [one.cut.value, one.shape, one.names, one.unit, one.fused_sizes, one.slices]
            for one in plan.parameters
        }
    )
    for what, ones in (("layer", plan.layers), ("block", plan.blocks)):
        fields.update({f"plan.{what} {one.module}": repr(one) for one in ones})
    fields.update({f"plan.sequence {one.stack}": repr(one) for one in plan.sequences})
    fields.update(digest_model(model) if given.weights is None else given.weights.fields())
    return Prepared(model, decision, plan, settings, optimizer)


def _one_config(given: InitArgs) -> Any:
    """Return the config from wherever it was given. Raises TpinitError when it was given twice."""
    in_args = getattr(given.args, "deepspeed_config", None)
    places = {
        "config": given.config,
        "config_params": given.config_params,
        "args.deepspeed_config": in_args,
    }
    found = {place: value for place, value in places.items() if value is not None}
    if len(found) > 1:
        raise TpinitError(f"more than one config was given: {', '.join(found)}; give one of them")
    return next(iter(found.values()), None)


def _check_same_config(recorded: Any, reading: ConfigReading) -> None:
    one, other = flatten(read_config(recorded).config, ""), flatten(reading.config, "")
    differing = sorted(key for key in {*one, *other} if key not in one or key not in other or one[key] != other[key])
    if differing:
        raise TpinitError(
            f"tp_model_init was given another config than initialize; they differ in {', '.join(differing)}: "
            "give the config to initialize alone"
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
            # Groups differ between ranks by nature; where they came from does not.
            [[one.source.value, None if isinstance(one.value, Group) else one.value] for one in violation.given],
        ]
        for violation in decision.violations
    ]
    report.fields["decision.dp_group"] = "given" if decision.dp_group is not None else "none"
    report.tp_ranks = ranks_of(decision.tp_group.value.handle) if decision.tp_group.value is not None else None
    report.dp_ranks = ranks_of(decision.dp_group.handle) if decision.dp_group is not None else None


def _dp_size(decision: Decision) -> int:
    """Return the number of data-parallel ranks: the world over the TP size, or row 2's own group."""
    if decision.tp_size.value is not None:
        return max(1, decision.world_size // decision.tp_size.value)
    return decision.dp_group.size if decision.dp_group is not None else 1


def _check_data(given: InitArgs, settings: Settings, report: RankReport) -> None:
    if given.training_data is None:
        return
    if not hasattr(given.training_data, "__len__"):
        raise UnsupportedError("training_data has no length: iterable datasets are not implemented")
    if settings.batch.micro is None:
        problem = Problem(
            "train_micro_batch_size_per_gpu", "", "training_data needs a batch size", "add it to the config"
        )
        raise ConfigError([problem])
    report.fields["training_data.length"] = len(given.training_data)


def _optimizer(given: InitArgs, model: nn.Module, settings: Settings, fields: dict[str, object]) -> Optimizer | None:
    """Return the optimizer over the model's own Parameter objects, which survive the cut; None without one."""
    if given.optimizer is not None and settings.optimizer is not None:
        warnings.warn("the optimizer that was passed is used; the config's is not", stacklevel=4)
    if given.lr_scheduler is not None and settings.scheduler is not None:
        warnings.warn("the lr_scheduler that was passed is used; the config's is not", stacklevel=4)
    wanted: Any = given.model_parameters(model) if callable(given.model_parameters) else given.model_parameters
    parameters = list(wanted) if wanted is not None else list(model.parameters())
    optimizer: Optimizer
    if isinstance(given.optimizer, Optimizer):
        optimizer = given.optimizer
    elif given.optimizer is not None:
        optimizer = given.optimizer(parameters)
    elif settings.optimizer is not None:
        optimizer = build_optimizer(settings.optimizer, parameters)
    else:
        if settings.scheduler is not None or given.lr_scheduler is not None:
            raise UnsupportedError("there is a learning-rate schedule and no optimizer: add one")
        return None
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    _check_optimizer(optimizer, names)
    fields["optimizer.type"] = type(optimizer).__name__
    for place, group in enumerate(optimizer.param_groups):
        fields[f"optimizer.param_groups[{place}].params"] = [names[id(one)] for one in group["params"]]
        fields.update(
            flatten({key: value for key, value in group.items() if key != "params"}, f"optimizer.param_groups[{place}]")
        )
    return optimizer


def _check_optimizer(optimizer: Optimizer, own: Mapping[int, str]) -> None:
    """Refuse one that has state, or holds anything but the model's `own` parameters, which are given by their ids."""
    if optimizer.state:
        raise UnsupportedError(
            "the optimizer already has state, which belongs to the whole parameters: make a new one before initialize"
        )
    strangers = sum(id(one) not in own for group in optimizer.param_groups for one in group["params"])
    if strangers:
        raise PlanError(f"{strangers} parameters of the optimizer are not the model's: build it from this model")
