"""Proves, for one model and one config, that the training step of the TP ranks is that of the whole model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from tpinit.reference.config import read_config
from tpinit.reference.errors import DecisionError, TpinitError
from tpinit.reference.objects import Resolver
from tpinit.reference.spellings import show
from tpinit.runtime.init.api import initialize
from tpinit.runtime.recording import LayoutClaim, RecordError, adamw, record_rank, record_whole
from tpinit.runtime.settings import Settings, read_settings
from tpinit.runtime.training.optimizers import build_optimizer
from tpinit.spec.vocabulary import DType
from tpinit.step.graph import Graph, Op
from tpinit.step.lift import ShardClaim
from tpinit.step.verdict import StepVerdict, prove_step
from tpinit.step.whole import refs

__all__ = ["CoveredConfig", "RecordedStep", "prove_recorded", "read_covered", "record_step", "verify_step"]

_KEY = "tensor_parallel"
# What is left out of the config: the optimizer is given, and a step is one micro-batch of one replica.
_LEFT_OUT = ("optimizer", "scheduler", "train_batch_size", "gradient_accumulation_steps")
T = TypeVar("T")
MakeOptimizer = Callable[[nn.Module], Optimizer]


@dataclass(frozen=True, slots=True)
class CoveredConfig:
    """A config that the step proof covers: what the recorded ranks get, its settings, and the section for the plan."""

    page: Mapping[str, Any]
    settings: Settings
    section: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """A training step of the whole model and of each rank, and what the plan says of each parameter, by name."""

    whole: Graph
    ranks: tuple[Graph, ...]
    claims: Mapping[str, ShardClaim]
    notes: tuple[str, ...] = ()


def verify_step(
    make_model: Callable[[], nn.Module],
    batch: Mapping[str, Any],
    config: str | Mapping[str, Any] | None,
    tp_size: int,
    *,
    sequence_parallel: bool = False,
    make_optimizer: MakeOptimizer | None = None,
) -> StepVerdict:
    """Record a training step of the whole model and of each of `tp_size` simulated ranks, and prove that they agree.

    Proven is, for all values of the parameters, the optimizer's states and the batch, in real numbers: the loss, every
    gradient, the clipping norm, every updated parameter and state of a rank are its part, as the plan says, of those
    of the whole model. What is not proven is not wrong: it may lack a rule. docs/step-proofs.md says what is assumed.

    `make_model` returns a new model with the same parameters each time, on the CPU, in fp32 and in training mode. Of
    the large parameters only the sizes matter: make them small. `batch` are its keyword arguments, labels included; the
    output has the loss as `.loss`. `config` is that of `initialize`: its `gradient_clipping` clips both sides.
    `make_optimizer` makes the optimizer of both sides (default: the config's, else AdamW).

    No process is started. Raises RecordError for what can't be recorded or is not covered (ZeRO, fp16, bf16, gradient
    accumulation, a model without a loss or whose forward branches on its data), PlanError for a model that the plan
    refuses, ConfigError and DecisionError for the config. All are TpinitError.
    """
    return prove_recorded(
        record_step(
            make_model, batch, config, tp_size, sequence_parallel=sequence_parallel, make_optimizer=make_optimizer
        )
    )


def prove_recorded(step: RecordedStep) -> StepVerdict:
    """Return the verdict on a recorded step. Raises RecordError for a whole step whose operations do not fit."""
    try:
        verdict = prove_step(step.whole, step.ranks, step.claims)
    except ValueError as error:
        raise RecordError(f"the recorded step of the whole model can't be read as one: {error}") from error
    return replace(verdict, assumptions=(*verdict.assumptions, *step.notes))


def record_step(
    make_model: Callable[[], nn.Module],
    batch: Mapping[str, Any],
    config: str | Mapping[str, Any] | None,
    tp_size: int,
    *,
    sequence_parallel: bool = False,
    make_optimizer: MakeOptimizer | None = None,
) -> RecordedStep:
    """Return what `verify_step` proves: the recorded step of the whole model and of each rank, and the plan's claims.

    Takes the arguments of `verify_step`, and raises what it raises.
    """
    covered = read_covered(config, tp_size)
    settings = covered.settings
    if dist.is_initialized():
        raise RecordError(
            "torch.distributed is started in this process, and the step is recorded in a simulated world: verify "
            "before init_process_group, after destroy_process_group, or in another process"
        )
    optimizer = make_optimizer or (adamw if settings.optimizer is None else _configs_optimizer(settings))
    whole = _run("the whole model", lambda: record_whole(make_model(), batch, settings.clipping, optimizer))
    _check_reads(whole)

    def record(rank: int) -> tuple[Graph, tuple[LayoutClaim, ...]]:
        return record_rank(
            initialize,
            make_model,
            batch,
            covered.page,
            rank,
            tp_size,
            optimizer,
            sequence_parallel=sequence_parallel,
            verify="none",
        )

    recorded = [_run(f"rank {rank}", partial(record, rank)) for rank in range(tp_size)]
    layouts = recorded[0][1]
    for rank, (_, claimed) in enumerate(recorded):
        _check_equal(rank, claimed, layouts)
    graphs = tuple(graph if settings.clipping else _without_norm(graph) for graph, _ in recorded)
    claims = {one.name: ShardClaim.of_pieces(one.shape, one.dim, one.pieces) for one in layouts}
    return RecordedStep(whole, graphs, claims, _notes(settings))


def _check_equal(rank: int, claimed: tuple[LayoutClaim, ...], first: tuple[LayoutClaim, ...]) -> None:
    """Raise RecordError unless the plan of a rank claims the layouts that the plan of rank 0 does."""
    if claimed != first:
        names = [one.name for one, other in zip_longest(first, claimed) if one != other and one is not None]
        raise RecordError(
            f"the plan of rank {rank} is not that of rank 0, for {names[0] if names else 'its number of parameters'}: "
            "make_model must return the same model each time"
        )


def _without_norm(graph: Graph) -> Graph:
    """Return the step of a rank that does not clip: the engine has its norm, and nothing reads it."""
    return replace(graph, results={name: value for name, value in graph.results.items() if name != "norm"})


def read_covered(config: str | Mapping[str, Any] | None, tp_size: int) -> CoveredConfig:
    """Read a config for a step over `tp_size` ranks. Raises RecordError for what the step proof does not cover.

    A config without a tensor_parallel section gets one. Raises ConfigError and DecisionError as `initialize` does.
    """
    if type(tp_size) is not int or tp_size < 1:
        raise RecordError(f"tp_size is {show(tp_size)}, and must be an integer of at least 1")
    page = dict(read_config(config).config)
    if page.get(_KEY) is None:
        page[_KEY] = {"autotp_size": tp_size}
    if page.get("train_micro_batch_size_per_gpu") is not None:
        page.pop("train_batch_size", None)  # of a world with other data-parallel ranks
    decision = Resolver(tp_size).resolve(call=None, config=page)
    if decision.violations:
        raise DecisionError(decision)
    if decision.tp_size.value != tp_size:
        raise RecordError(
            f"the config's tensor_parallel section makes groups of {decision.tp_size.value or 1}, and tp_size is "
            f"{tp_size}: give one size"
        )
    dtype = decision.dtype.value
    settings = read_settings(page, 1, dtype)
    found = [
        *([f"parameters in {dtype.value}"] if dtype not in (None, DType.FP32) else []),
        *([f"zero_optimization.stage {settings.zero_stage}"] if settings.zero_stage else []),
        *([f"gradient_accumulation_steps {settings.batch.accumulation}"] if settings.batch.accumulation > 1 else []),
    ]
    if found:
        raise RecordError(
            f"the config has {', '.join(found)}, which the step proof does not cover: it covers steps of one "
            "micro-batch in fp32 without ZeRO. fix: verify with a config without these keys"
        )
    kept = {key: value for key, value in page.items() if key not in _LEFT_OUT}
    return CoveredConfig(kept, settings, decision.carried)


def _configs_optimizer(settings: Settings) -> MakeOptimizer:
    """Return a function that makes the config's optimizer, one operation after another for each parameter."""
    component = settings.optimizer
    assert component is not None

    def make(model: nn.Module) -> Optimizer:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        optimizer = build_optimizer(component, list(model.parameters()), names)
        for group in optimizer.param_groups:
            group.update({key: False for key in ("foreach", "fused") if key in group})
        return optimizer

    return make


def _run(who: str, record: Callable[[], T]) -> T:
    """Return a recording. Raises RecordError for what the model's own code, or a library that it calls, raises."""
    try:
        return record()
    except TpinitError:
        raise
    except Exception as error:
        raise RecordError(
            f"a training step of {who} does not run on this batch: {type(error).__name__}: {str(error)[:300]}"
        ) from error


def _check_reads(whole: Graph) -> None:
    """Raise RecordError if the model's forward reads numbers that depend on its data: it may branch by them."""
    makers = {value: op for op in whole.ops for value in op.outputs}
    constants = {leaf.value for leaf in whole.leaves if leaf.kind == "constant"}
    for value, number in whole.premises:
        maker = makers.get(value)
        if _depends_on_data(value, makers, constants):
            place = f"{maker.place.line} in {maker.place.module or 'the model'}" if maker is not None else "the model"
            raise RecordError(
                f"the model branches on its data: at {place} the host reads the number {number}, so another batch may "
                "run other operations. Only a step without such reads is a theorem about every batch"
            )


def _depends_on_data(value: int, makers: Mapping[int, Op], constants: set[int]) -> bool:
    wanted, seen = [value], {value}
    while wanted:
        current = wanted.pop()
        op = makers.get(current)
        if op is None:
            if current not in constants:
                return True
            continue
        fresh = [one for one in refs(op.args) if one not in seen]
        seen.update(fresh)
        wanted.extend(fresh)
    return False


def _notes(settings: Settings) -> tuple[str, ...]:
    notes = [
        "a step is one micro-batch of one data-parallel replica: no sum over micro-batches or replicas is part of it"
    ]
    if settings.scheduler is not None:
        notes.append("the learning rate is that of the optimizer section: the schedule is not part of it")
    return tuple(notes)
