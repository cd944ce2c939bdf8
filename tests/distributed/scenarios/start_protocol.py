"""Starts in which some ranks fail or differ, at every step: what each rank exchanged, sent and raised."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tpinit.reference.errors import TpinitError
from tpinit.runtime import initialize, tp_model_init
from tpinit.runtime.init import launch, verify
from tpinit.runtime.init.probe import sharded_difference

from scenarios.refused_inputs import Change, Setup, config_with
from support.refusals import in_step
from support.tiny_models import build

SGD = {"type": "SGD", "params": {"lr": 0.1}}


class SilentError(Exception):
    """An error whose text can't be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def argument(**values: Any) -> Change:
    return lambda setup: setup.arguments.update(values)


def raising(error: Callable[[], BaseException]) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise error()

    return function


def optimizer_that(error: Callable[[], BaseException]) -> Change:
    """Return a change that gives a function as the optimizer, under one name on all ranks."""
    return argument(optimizer=raising(error))


def schedule_of(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1)


def failing_schedule(setup: Setup) -> None:
    def schedule_of(_: Any) -> Any:
        raise TpinitError("no schedule")

    schedule_of.__qualname__ = "schedule_of"
    setup.arguments["lr_scheduler"] = schedule_of


def of_another_call(setup: Setup) -> None:
    setup.arguments["tp_group"] = setup.arguments["other_group"]


def as_list(setup: Setup) -> None:
    setup.arguments["tp_group"] = list(range(setup.world))


def whole_in_one(*arguments: Any) -> str:
    """Compare as ever, so that the collectives are sent, and say that something differs."""
    return f"it differs: {sharded_difference(*arguments)}"


# By name: what a rank does otherwise, and the last exchange that the ranks come to. The plain start gives a function as
# the lr_scheduler and, in the cases of groups, a communicator to tp_model_init.
INPUTS: dict[str, tuple[Change, str]] = {
    "verify of no mode": (argument(verify="nonsense"), "devices"),
    "verify of another mode": (argument(verify="none"), "devices"),
    "a time-out that is no number": (argument(timeout="soon"), "devices"),
    "another time-out": (argument(timeout=77), "devices"),
    "sequence parallelism": (argument(sequence_parallel=True), "devices"),
    "a number in place of a truth": (argument(gather_logits=1), "devices"),
    "other checks": (argument(check_inputs_every=3), "devices"),
    "no lr_scheduler": (argument(lr_scheduler=None), "devices"),
    "another kind of mesh": (argument(mesh_param=(1, 2)), "devices"),
    "an example": (argument(example={"input_ids": torch.zeros(1, 4, dtype=torch.long)}), "devices"),
    "training data": (argument(training_data=[1, 2, 3]), "devices"),
    "another collate_fn": (argument(collate_fn=list), "devices"),
    "another learning rate": (config_with(optimizer={"type": "SGD", "params": {"lr": 0.2}}), "prepare"),
    "another size": (config_with(tensor_parallel={"autotp_size": 1}), "prepare"),
    "a config that is no config": (lambda setup: setup.arguments.update(config="{"), "prepare"),
    "an unknown key": (config_with(gradient_cliping=1.0), "prepare"),
}
FUNCTIONS: dict[str, tuple[Change, str]] = {
    "an optimizer that raises": (optimizer_that(lambda: RuntimeError("no optimizer")), "prepare"),
    "an optimizer that exits": (optimizer_that(lambda: SystemExit(3)), "prepare"),
    "an optimizer that is interrupted": (optimizer_that(KeyboardInterrupt), "prepare"),
    "an optimizer with an error without text": (optimizer_that(SilentError), "prepare"),
    "an lr_scheduler that raises": (failing_schedule, "engine"),
}
GROUPS: dict[str, tuple[Change, str]] = {
    "a communicator of another call": (of_another_call, "prepare"),
    "a list of ranks": (as_list, "prepare"),
}


@contextmanager
def injected(module: Any, name: str, failing: bool, fault: Callable[..., Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if failing:
            patch.setattr(module, name, fault)
        yield


# What no input makes fail on one rank alone is made to fail here.
INJECTED: dict[str, tuple[Any, str, Callable[..., Any], str]] = {
    "groups that can't be made": (launch, "create_groups", raising(lambda: RuntimeError("no port")), "groups"),
    "a model that can't be probed": (verify, "run_unsharded", raising(MemoryError), "probe: unsharded model"),
    "a probe that differs": (verify, "sharded_difference", whole_in_one, "probe: sharded model"),
    "a model that can't be cut": (launch, "apply_plan", raising(MemoryError), "shard"),
}


def plain(rank: int, groups: Sequence[Any], with_group: bool) -> Setup:
    world = dist.get_world_size()
    config: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "optimizer": SGD}
    setup = Setup(rank, world, config, build(), {"lr_scheduler": schedule_of, "verify": "probe"})
    if with_group:
        setup.arguments.update(tp_group=groups[0], other_group=groups[1])
    else:
        config["tensor_parallel"] = {"autotp_size": world}
    return setup


def run_start(setup: Setup) -> dict[str, Any]:
    """Start a run; return the exchanges and collectives that this rank came to, its error, and the seconds."""
    steps: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: steps.append(record.getMessage())  # type: ignore[method-assign]  # it only lists
    log = logging.getLogger("tpinit.protocol")
    log.addHandler(handler)
    level, log.level = log.level, logging.DEBUG
    log.setLevel(logging.DEBUG)
    kind, text, begin = "", "", time.monotonic()
    arguments = {"config": setup.config, **setup.arguments}
    arguments.pop("other_group", None)
    with recorded() as sent:
        try:
            if "tp_group" in arguments:
                tp_model_init(setup.model, setup.world, "fp32", tp_group=arguments.pop("tp_group"))
            initialize(model=setup.model, **arguments)[0].destroy()
        except BaseException as error:
            kind = type(error).__name__
            text = "" if isinstance(error, SilentError) else str(error)
    log.removeHandler(handler)
    log.setLevel(level)
    return {"steps": steps, "sent": sent, "type": kind, "text": text, "seconds": time.monotonic() - begin}


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Give the names of the collectives that are sent meanwhile, in order."""
    sent: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_reduce", "all_gather", "all_gather_object", "broadcast", "barrier", "reduce_scatter_tensor"):
            original = getattr(dist, name)

            def call(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
                sent.append(_name)
                return _original(*args, **kwargs)

            patch.setattr(dist, name, call)
        yield sent


def _two_groups() -> list[Any]:
    ranks = list(range(dist.get_world_size()))
    return [dist.new_group(ranks) for _ in range(2)]


def every_case(rank: int, failing: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Start once for each case and each list of ranks that fail or differ."""
    groups, found = _two_groups(), []
    cases = {**INPUTS, **FUNCTIONS, **GROUPS}
    for ranks in failing:
        for name, (change, last) in cases.items():
            setup = plain(rank, groups, name in GROUPS)
            if rank in ranks:
                change(setup)
            elif name in FUNCTIONS and last == "prepare":
                argument(optimizer=_named(torch.optim.SGD))(setup)
            found.append({"case": name, "last": last, "ranks": ranks, **run_start(setup)})
        for name, (module, attribute, fault, last) in INJECTED.items():
            with injected(module, attribute, rank in ranks, fault):
                found.append({"case": name, "last": last, "ranks": ranks, **run_start(plain(rank, groups, False))})
    found.append({"case": "none", "last": "", "ranks": [], **run_start(plain(rank, groups, False))})
    assert in_step(rank)
    return found


def _named(optimizer: Any) -> Callable[..., Any]:
    """Return a function that builds an optimizer, with the name that the failing functions have."""

    def function(parameters: Any) -> Any:
        return optimizer(parameters, lr=0.1)

    function.__qualname__ = "raising.<locals>.function"
    return function


def drawn(rank: int, seed: int, count: int) -> list[dict[str, Any]]:
    """Start `count` times with one to three drawn cases, each on drawn ranks."""
    groups, draw, found = _two_groups(), random.Random(seed), []
    everything = {**INPUTS, **FUNCTIONS, **GROUPS}
    for _ in range(count):
        names = draw.sample(sorted(everything), draw.randint(1, 3))
        ranks = {name: [one for one in range(dist.get_world_size()) if draw.random() < 0.5] for name in names}
        setup = plain(rank, groups, any(name in GROUPS for name in names))
        for name in names:
            if rank in ranks[name]:
                everything[name][0](setup)
        found.append({"case": ranks, **run_start(setup)})
        assert in_step(rank)
    return found
