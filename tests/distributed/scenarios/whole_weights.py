"""Whole weights of a sharded model: consolidated, written, loaded, and edited where they are gathered."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tpinit.runtime import GatheredParameters, from_pretrained, initialize
from tpinit.runtime.slicing import local_part
from transformers import AutoModelForCausalLM, AutoTokenizer

from scenarios.engine import config, train
from support.refusals import error_of, in_step, refusal_of
from support.tiny_models import build, tokens
from support.tuning import write_tiny

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
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


def exported(rank: int, folder: str) -> dict[str, Any]:
    """Load a directory that has a tokenizer and defaults of generation, sharded and not, and write it again."""
    base = Path(folder)
    if rank == 0:
        write_tiny(base)
    dist.barrier()
    plain = AutoModelForCausalLM.from_pretrained(base / "model")
    tokenizer = AutoTokenizer.from_pretrained(base / "model")
    ids = tokenizer("Beautiful is", return_tensors="pt").input_ids
    settings = config(tensor_parallel={"autotp_size": 2})
    engine, *_ = from_pretrained(base / "model", config=settings)
    tokens_alike = torch.equal(engine.module.generate(ids), plain.generate(ids))
    engine.save_pretrained(base / "sharded")
    engine.save_pretrained(base / "given", tokenizer=tokenizer)
    whole, *_ = from_pretrained(base / "model", config=config(tensor_parallel={"autotp_size": 1}))
    whole.save_pretrained(base / f"of rank {rank}")
    whole.module.save_pretrained(base / f"by rank {rank}")
    read: Any = pickle.loads(pickle.dumps(copy.deepcopy(whole.module)))
    read.save_pretrained(base / f"copied on rank {rank}")
    errors = [error_of(lambda: whole.save_pretrained(base / "zen.jsonl" / "below"))]
    linear, *_ = initialize(model=nn.Linear(2, 2), config=config(tensor_parallel={"autotp_size": 1}))
    errors.append(error_of(lambda: linear.save_pretrained(base / "linear")))
    dist.barrier()
    names = ("sharded", "given", "of rank 0")
    loaded = {name: AutoModelForCausalLM.from_pretrained(base / name) for name in names}
    return {
        "generates": tokens_alike,
        "weights": {name: _equal(one.state_dict(), plain) for name, one in loaded.items()},
        "defaults": [one.generation_config.max_new_tokens for one in (plain, *loaded.values())],
        "tokenizers": [AutoTokenizer.from_pretrained(base / name)("Now is").input_ids for name in ("model", *names)],
        "missing": sorted(_files(base / "model").keys() - _files(base / "sharded").keys()),
        "equal": all(_files(base / "sharded")[name] == _files(base / "model")[name] for name in TOKENIZER),
        "written": [(base / f"{how} {rank}").exists() for how in ("of rank", "by rank", "copied on rank")],
        "errors": errors,
        "in_step": in_step(rank),
    }


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
