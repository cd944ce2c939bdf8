"""State dicts of a sharded model and its optimizer: parts for torch.distributed.checkpoint, whole ones, files."""

from __future__ import annotations

import copy
import io
import os
import weakref
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import state_dict as dcp_state
from torch.distributed.checkpoint.state_dict import StateDictOptions
from tpinit.runtime import initialize

from support.pairs import pair
from support.refusals import in_step, refusal_of
from support.tiny_models import build, tokens

FULL = StateDictOptions(full_state_dict=True)
BROADCAST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
ON_RANK_0 = StateDictOptions(full_state_dict=True, cpu_offload=True)


def _gap(model: Any, other: Any) -> float:
    with torch.no_grad():
        return float((model(input_ids=tokens()).logits - other(input_ids=tokens()).logits).abs().max())


def distributed_checkpoints(rank: int, folder: str) -> dict[str, Any]:
    """Save and load the model with DCP: same topology, into the unsharded model, from it, and asynchronously."""
    gaps, strayed = {}, []
    for family, tied in (("llama", True), ("phi3", False)):
        options = {"family": family, "tie_word_embeddings": tied}
        unsharded, engine = pair(**options)
        place = f"{folder}/{family}"
        dcp.save({"model": engine.module.state_dict()}, checkpoint_id=place)
        other, sharded = pair(**options, seed=3)
        strayed.append(_gap(sharded, unsharded))
        for name, module in (("sharded", sharded.module), ("unsharded", other)):
            state = {"model": module.state_dict()}
            dcp.load(state, checkpoint_id=place)
            module.load_state_dict(state["model"])
            gaps[f"{family}, {name}"] = _gap(module, unsharded)
        dcp.save({"model": unsharded.state_dict()}, checkpoint_id=f"{place}-whole")
        _, sharded = pair(**options, seed=3)
        state = {name.removeprefix("module."): value for name, value in sharded.state_dict().items()}
        dcp.load({"model": state}, checkpoint_id=f"{place}-whole")  # in place: the values are those of the parameters
        gaps[f"{family}, from whole"] = _gap(sharded, unsharded)
        dcp.async_save({"model": engine.module.state_dict()}, checkpoint_id=f"{place}-async").result()
        _, sharded = pair(**options, seed=3)
        state = dcp_state.get_model_state_dict(sharded.module)
        dcp.load({"model": state}, checkpoint_id=f"{place}-async")
        dcp_state.set_model_state_dict(sharded.module, state)
        gaps[f"{family}, async"] = _gap(sharded, unsharded)
    return {"gaps": gaps, "strayed": strayed, "in_step": in_step(rank)}


def full_state_dicts(rank: int) -> dict[str, Any]:
    """Get the whole model by torch's options, set it by them, and exchange files of torch.save."""
    unsharded, engine = pair()
    expected, gaps = unsharded.state_dict(), {}
    on_rank_0 = dcp_state.get_model_state_dict(engine.module, options=ON_RANK_0)
    full = dcp_state.get_model_state_dict(engine, options=FULL)
    gaps["full"] = max(float((full[f"module.{name}"] - value).abs().max()) for name, value in expected.items())
    for name, options in (("full", FULL), ("broadcast", BROADCAST)):
        _, other = pair(seed=3)
        given = expected if options is FULL or rank == 0 else {}
        dcp_state.set_model_state_dict(other.module, copy.copy(given), options=options)
        gaps[f"set {name}"] = _gap(other, unsharded)
    file = io.BytesIO()
    torch.save(engine.module.state_dict(), file)
    files: list[bytes] = [b""] * dist.get_world_size()
    dist.all_gather_object(files, file.getvalue())
    own, foreign = (torch.load(io.BytesIO(files[index]), weights_only=True) for index in (rank, 1 - rank))
    other.module.load_state_dict(own)
    return {
        "keys": sorted(on_rank_0) == (sorted(expected) if rank == 0 else []),
        "gaps": {**gaps, "file": _gap(other, unsharded)},
        "types": {type(value).__name__ for value in own.values()},
        "foreign": refusal_of(lambda: other.module.load_state_dict(foreign)),
        "assign": refusal_of(lambda: other.module.load_state_dict(expected, assign=True)),
        "size": refusal_of(lambda: other.module.load_state_dict({**own, "lm_head.weight": torch.zeros(3, 3)})),
        "inner": _inner(other, unsharded),
        "in_step": in_step(rank),
    }


def _inner(engine: Any, unsharded: Any) -> float:
    engine.module.model.layers[0].load_state_dict(unsharded.model.layers[0].state_dict())
    return _gap(engine, unsharded)


def _engine(seed: int = 0, **more: Any) -> Any:
    config = {
        "tensor_parallel": {"autotp_size": dist.get_world_size()},
        "gradient_clipping": 0,
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}},
        **more,
    }
    return initialize(model=build(seed=seed), config=config)[0]


def _losses(engine: Any, first: int, count: int = 2) -> list[float]:
    found = []
    for seed in range(first, first + count):
        loss = engine(input_ids=tokens(seed), labels=tokens(seed)).loss
        found.append(float(loss.detach()))
        engine.backward(loss)
        engine.step()
    return found


def _unsharded_losses(model: Any, optimizer: Any, first: int) -> list[float]:
    found = []
    for seed in range(first, first + 2):
        loss = model(input_ids=tokens(seed), labels=tokens(seed)).loss
        found.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return found


def optimizer_states(rank: int, folder: str) -> dict[str, Any]:
    """Train, save model and optimizer, go on from what was loaded: by DCP, whole, and in the unsharded model."""
    engine = _engine()
    _losses(engine, 0)
    state = dict(zip(("model", "optimizer"), dcp_state.get_state_dict(engine.module, engine.optimizer), strict=True))
    dcp.save(state, checkpoint_id=folder)
    full = copy.deepcopy(dcp_state.get_state_dict(engine.module, engine.optimizer, options=FULL))
    losses = {}
    other = _engine(seed=3)
    unsharded = build(seed=3)
    unsharded_optimizer = torch.optim.AdamW(unsharded.parameters(), lr=1e-2)
    for module, optimizer in ((other.module, other.optimizer), (unsharded, unsharded_optimizer)):
        loaded = dict(zip(("model", "optimizer"), dcp_state.get_state_dict(module, optimizer), strict=True))
        dcp.load(loaded, checkpoint_id=folder)
        dcp_state.set_state_dict(
            module, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"]
        )
    losses["sharded"] = _losses(other, 5)
    losses["unsharded"] = _unsharded_losses(unsharded, unsharded_optimizer, 5)
    for name, options in (("full", FULL), ("broadcast", BROADCAST)):
        other = _engine(seed=3)
        given = copy.deepcopy(full) if options is FULL or rank == 0 else ({}, {})
        dcp_state.set_model_state_dict(other.module, given[0], options=options)
        dcp_state.set_optimizer_state_dict(other.module, other.optimizer, given[1], options=options)
        losses[name] = _losses(other, 5)
    return {
        "half": _half(f"{folder}-half"),
        "expected": _losses(engine, 5),
        "losses": losses,
        "strayed": _losses(_engine(seed=3), 5),
        "types": {type(value).__name__ for kept in other.optimizer.state.values() for value in kept.values()},
        "in_step": in_step(rank),
    }


def _half(folder: str) -> dict[str, bool]:
    """Save a bf16 run with its master copies by DCP; return whether runs that load it go on to the bit."""
    engine = _engine(bf16={"enabled": True})
    _losses(engine, 0)
    state = dict(zip(("model", "optimizer"), dcp_state.get_state_dict(engine.module, engine.optimizer), strict=True))
    dcp.save(state, checkpoint_id=folder)
    expected, found = _losses(engine, 5), {}
    for name in ("with masters", "without"):
        other = _engine(seed=3, bf16={"enabled": True})
        loaded = dict(zip(state, dcp_state.get_state_dict(other.module, other.optimizer), strict=True))
        dcp.load(loaded, checkpoint_id=folder)
        if name == "without":
            for entry in loaded["optimizer"]["state"].values():
                entry.pop("master_param")
        dcp_state.set_state_dict(
            other.module,
            other.optimizer,
            model_state_dict=loaded["model"],
            optim_state_dict=loaded["optimizer"],
        )
        losses = _losses(other, 5)
        pairs = zip(engine.parameters(), other.parameters(), strict=True)
        found[name] = losses == expected and all(torch.equal(one, two) for one, two in pairs)
    return found


def whole_files_are_streamed(rank: int, folder: str) -> dict[str, Any]:
    """Save a model, and return the most bytes that this rank held at once beside its part; try what is refused."""
    unsharded, engine = pair(hidden_size=64, intermediate_size=512, num_hidden_layers=6)
    with Peak() as peak:
        engine.module.save_pretrained(folder, max_shard_size="100KB", is_main_process=rank == 0)
    whole = {name: tensor.numel() * tensor.element_size() for name, tensor in unsharded.state_dict().items()}
    loaded = type(unsharded).from_pretrained(folder)
    blocked = f"{folder}/file"
    if rank == 0:
        with open(blocked, "w"):
            pass
    return {
        "peak": peak.most,
        "largest": max(whole.values()),
        "total": sum(whole.values()),
        "files": sum(name.endswith(".safetensors") for name in os.listdir(folder)),
        "left": [name for name in os.listdir(folder) if not name.startswith(("model", "config", "generation", "file"))],
        "gap": _gap(loaded, unsharded),
        "counted": engine.module.num_parameters() == unsharded.num_parameters(),
        "file": refusal_of(lambda: engine.module.save_pretrained(blocked)),
        "given": refusal_of(lambda: engine.module.save_pretrained(folder, True, engine.module.state_dict())),
        "distributed": refusal_of(lambda: engine.module.save_pretrained(folder, distributed_checkpoint=True)),
        "in_step": in_step(rank),
    }


class Peak(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the bytes of the storages that operations make while the mode is on, and that live at the same time."""

    tp_only_watches = True

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = torch.utils._pytree.tree_leaves
        given = [value for value in leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        before = {value.untyped_storage()._cdata for value in given}
        result = func(*args, **(kwargs or {}))
        for value in leaves(result):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage(), before)
        return result

    def _count(self, storage: Any, before: set[int]) -> None:
        key = storage._cdata
        if key in before or key in self.alive:
            return
        self.alive[key] = storage.nbytes()
        weakref.finalize(storage, self.alive.pop, key, None)
        self.most = max(self.most, sum(self.alive.values()))
