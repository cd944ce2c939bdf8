"""Whole weights of a sharded model: consolidated, written, loaded, and edited where they are gathered."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import GatheredParameters, initialize
from tpinit.runtime.slicing import local_part

from scenarios.engine import config, train
from support.refusals import in_step, refusal_of
from support.tiny_models import build, tokens

OPTIONS: dict[str, Any] = {"intermediate_size": 50, "vocab_size": 65, "tie_word_embeddings": True}  # uneven shards


def _pair(**more: Any) -> tuple[Any, Any]:
    model = build(**OPTIONS)
    model.model.norm.weight.requires_grad_(False)
    whole = copy.deepcopy(model)
    engine, *_ = initialize(model=model, config=config(**more))
    return whole, engine


def _equal(state: Any, whole: Any) -> bool:
    expected = whole.state_dict()
    return list(state) == list(expected) and all(torch.equal(state[name], expected[name]) for name in expected)


def consolidate(rank: int, folder: str) -> dict[str, Any]:
    """Gather and write the whole model; a negative control compares it with another one."""
    whole, engine = _pair()
    state = engine._consolidated_16bit_state_dict()
    frozen = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=True)
    own = engine.module_state_dict(exclude_frozen_parameters=True)
    saved = engine.save_16bit_model(folder), engine.save_16bit_model(folder, "model.safetensors")
    read = torch.load(Path(folder) / "pytorch_model.bin", weights_only=True)
    (Path(folder) / "file").write_text("")
    failed = refusal_of(lambda: engine.save_16bit_model(Path(folder) / "file" / "below"))
    other = build(**OPTIONS, seed=1)
    result = {
        "state": state is None if rank else _equal(state, whole) and not _equal(state, other),
        "frozen": frozen is None if rank else len(frozen or {}) == len(whole.state_dict()) - 1,
        "own": "model.norm.weight" not in own and own["lm_head.weight"].shape[0] < 65,
        "saved": saved,
        "read": _equal(read, whole),
        "failed": failed,
    }
    engine.load_module_state_dict({"module": other.state_dict()})
    again = engine._consolidated_16bit_state_dict()
    dist.barrier()
    names = sorted(path.name for path in Path(folder).iterdir())
    return {**result, "loaded": rank or _equal(again, other), "names": names, "in_step": in_step(rank)}


def gathered(rank: int) -> dict[str, Any]:
    """Edit gathered parameters of a bf16 model on rank 1, and read them without an edit."""
    _, engine = _pair(bf16={"enabled": True})
    train(engine, 1)
    weight, norm = engine.module.lm_head.weight, engine.module.model.layers[0].input_layernorm.weight
    record = next(one for one in engine.plan.parameters if "lm_head.weight" in one.names)
    local = tuple(weight.shape)
    with GatheredParameters([weight, norm], modifier_rank=1):
        shape = tuple(weight.shape)
        refused = refusal_of(lambda: engine(input_ids=tokens()))
        if rank == 1:
            with torch.no_grad():
                weight[7] = 3.0
                norm.fill_(2.0)
    with GatheredParameters(weight):
        read = weight.detach().clone()
        weight.data.zero_()
    with GatheredParameters(weight, enabled=False):
        disabled = tuple(weight.shape) == local
    part = local_part(read, record, engine.plan.tp_size, engine.plan.tp_rank)
    before = weight.detach().float().clone()
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0  # so that an update writes the master copies back, and nothing else
    train(engine, 1)
    return {
        "shapes": (shape, local, tuple(weight.shape)),
        "edited": bool((read[7] == 3.0).all()) and not bool((read[8] == 3.0).any()),
        "norm": bool((norm == 2.0).all()),
        "unread": torch.equal(part, before.to(part.dtype)),
        "masters": torch.equal(weight.detach().float(), before),
        "disabled": disabled,
        "refused": refused,
        "rank": refusal_of(lambda: GatheredParameters(weight, modifier_rank=9)),
        "in_step": in_step(rank),
    }
