"""Records the second training step of a whole model, and that of one rank that trains it with an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from tpinit.runtime.parallel.host_rng import host_rng_states, seed_host_rngs, set_host_rng_states
from tpinit.runtime.planning.schema import Plan
from tpinit.runtime.recording.equal_world import equal_world
from tpinit.runtime.recording.errors import RecordError
from tpinit.runtime.recording.places import module_paths
from tpinit.runtime.recording.recorder import LeafNames, Recorder
from tpinit.runtime.slicing import Pieces
from tpinit.step.graph import Graph

__all__ = ["LayoutClaim", "adamw", "layout_claims", "record_rank", "record_whole"]

Batch = Mapping[str, Any]
_SEED = 0


@dataclass(frozen=True, slots=True)
class LayoutClaim:
    """What the plan says of a parameter: its whole shape, the sharded dimension (None: replicated), each rank's pieces.

    A piece is (offset, length) along `dim`; `pieces[r]` are those of rank r in order.
    """

    name: str
    shape: tuple[int, ...]
    dim: int | None
    pieces: tuple[Pieces, ...]


def adamw(model: nn.Module) -> Optimizer:
    """Return the optimizer of a recorded step: AdamW, one operation after another for each parameter."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, foreach=False, fused=False)


def layout_claims(plan: Plan) -> tuple[LayoutClaim, ...]:
    """Return what a plan says of each parameter, in its order."""
    return tuple(
        LayoutClaim(
            one.name,
            one.shape,
            one.dim,
            tuple(one.pieces_of(plan.tp_size, rank) for rank in range(plan.tp_size)),
        )
        for one in plan.parameters
    )


def record_whole(
    model: nn.Module,
    batch: Batch,
    clipping: float = 0.0,
    make_optimizer: Callable[[nn.Module], Optimizer] = adamw,
) -> Graph:
    """Return the second training step of a model in plain torch: forward, backward, clipping by the norm, update.

    `batch` are the keyword arguments of the model, labels among them; its output has the loss as `.loss`. The model is
    trained by two steps. `clipping` is the largest norm; 0: none. Raises RecordError for what can't be recorded.
    """
    optimizer = make_optimizer(model)

    def step(recorder: Recorder | None) -> dict[str, int]:
        results: dict[str, int] = {}
        loss = _loss(model(**batch), model)
        _enter(recorder, "backward")
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
        if recorder is not None:
            results = {"loss": recorder.value_of(loss), **_gradients(recorder, model)}
        _enter(recorder, "step")
        if clipping:
            norm = nn.utils.clip_grad_norm_(model.parameters(), clipping, foreach=False)
            if recorder is not None:
                results["norm"] = recorder.value_of(norm)
        optimizer.step()
        optimizer.zero_grad()
        return results

    return _second(step, model, optimizer, batch, 0, 1)


def record_rank(
    initialize: Callable[..., Any],
    make_model: Callable[[], nn.Module],
    batch: Batch,
    config: Mapping[str, Any],
    rank: int,
    ranks: int,
    make_optimizer: Callable[[nn.Module], Optimizer] = adamw,
    simulated: bool = True,
    **options: Any,
) -> tuple[Graph, tuple[LayoutClaim, ...]]:
    """Return the second training step of one rank of a TP group, and the layouts that its plan claims.

    `initialize` is `tpinit.runtime.initialize`, and gets the model that `make_model` returns, `make_optimizer` of it,
    the config and the options. It runs in a simulated world (`equal_world`), so the numbers are not those of a real
    rank; the operations are, unless they depend on numbers (which expert gets a token). With `simulated` False this
    process is that rank of a real world, and every rank must call this. Raises RecordError if torch.distributed is
    started and the world is simulated, and if the engine makes no update.
    """
    with equal_world(rank, ranks) if simulated else nullcontext(), _own_draws():
        model = make_model()
        options = {"check_inputs_every": 0, **options}  # that ranks get equal inputs is a premise of the step
        engine, optimizer, *_ = initialize(model=model, optimizer=make_optimizer(model), config=dict(config), **options)
        try:

            def step(recorder: Recorder | None) -> dict[str, int]:
                results: dict[str, int] = {}
                loss = _loss(engine(**batch), model)
                _enter(recorder, "backward")
                engine.backward(loss)
                if recorder is not None:
                    results = {"loss": recorder.value_of(loss), **_gradients(recorder, model)}
                _enter(recorder, "step")
                engine.step()
                if not engine.step_applied:
                    raise RecordError(f"rank {rank}: the engine skipped the update: its loss or gradient is not finite")
                if recorder is not None:
                    results["norm"] = recorder.value_of(vars(optimizer)["_global_grad_norm"])
                return results

            return _second(step, model, optimizer, batch, rank, ranks), layout_claims(engine.plan)
        finally:
            engine.destroy()


def _second(
    step: Callable[[Recorder | None], dict[str, int]],
    model: nn.Module,
    optimizer: Optimizer,
    batch: Batch,
    rank: int,
    ranks: int,
) -> Graph:
    """Run a step twice, and return the graph of the second: the optimizer has its states then.

    Every recording draws the same random numbers, and the caller's generators are as before.
    """
    with _own_draws():
        step(None)
    recorder = Recorder(_leaves(model, optimizer, batch), module_paths(model))
    with _own_draws(), recorder:
        results = step(recorder)
    with recorder:
        for kind, name, tensor in _leaves(model, optimizer, {}):
            if kind in ("parameter", "state"):
                results[f"{kind} {name}"] = recorder.value_of(tensor)
    return recorder.graph(results, rank, ranks)


@contextmanager
def _own_draws() -> Iterator[None]:
    """Seed all generators of the host, and restore their states at the end."""
    states = host_rng_states()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            seed_host_rngs(_SEED)
            yield
    finally:
        set_host_rng_states(*states)


def _leaves(model: nn.Module, optimizer: Optimizer, batch: Batch) -> LeafNames:
    """Return the named tensors of a step. The counters of the optimizer's steps are none: they are constants."""
    parameters = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    return [
        *(("parameter", name, parameter) for name, parameter in parameters.items()),
        *(("buffer", name, buffer) for name, buffer in model.named_buffers()),
        *(("batch", name, value) for name, value in batch.items() if isinstance(value, torch.Tensor)),
        *(
            ("state", f"{state}:{names[id(parameter)]}", value)
            for parameter, states in optimizer.state.items()
            if id(parameter) in names
            for state, value in states.items()
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and state != "step"
        ),
    ]


def _gradients(recorder: Recorder, model: nn.Module) -> dict[str, int]:
    return {
        f"grad {name}": recorder.value_of(parameter.grad)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def _loss(output: Any, model: nn.Module) -> torch.Tensor:
    loss = getattr(output, "loss", None)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise RecordError(
            f"the output of {type(model).__qualname__} has no scalar `loss`: pass labels in the batch, of a model that "
            "computes its loss from them"
        )
    return loss


def _enter(recorder: Recorder | None, phase: str) -> None:
    if recorder is not None:
        recorder.phase = phase
