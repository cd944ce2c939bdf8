"""Public calls on a sharded model that torch and transformers would answer with parts."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize
from tpinit.runtime.training.call_guards import REFUSED

from support.pairs import pair
from support.refusals import in_step, refusal_of
from support.tiny_models import build, tokens


def _gap(model: Any, other: Any) -> float:
    with torch.no_grad():
        return float((model(input_ids=tokens()).logits - other(input_ids=tokens()).logits).abs().max())


def whole_files_and_state_dicts(rank: int, folder: str) -> dict[str, Any]:
    """Save the whole model and reload it in plain transformers; load a whole state dict, and the rank's own."""
    gaps = {}
    for tied in (False, True):
        unsharded, engine = pair(tie_word_embeddings=tied)
        saved = f"{folder}/{tied}"
        engine.module.save_pretrained(saved)
        gaps[f"saved, tied {tied}"] = _gap(type(unsharded).from_pretrained(saved), unsharded)
        state = {name: torch.randn_like(value) * 0.05 for name, value in unsharded.state_dict().items()}
        if tied:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        for value in state.values():
            dist.broadcast(value, 0)
        unsharded.load_state_dict(state)
        engine.module.load_state_dict(state)
        gaps[f"loaded, tied {tied}"] = _gap(engine, unsharded)
        engine.module.load_state_dict(engine.module.state_dict())
        gaps[f"own, tied {tied}"] = _gap(engine, unsharded)
        gaps[f"copied, tied {tied}"] = _gap(copy.deepcopy(engine.module), unsharded)
    alone = refusal_of(lambda: engine.module.save_pretrained(folder) if rank else engine(input_ids=tokens()))
    return {"gaps": gaps, "alone": alone, "in_step": in_step(rank)}


def refused_calls(rank: int) -> dict[str, Any]:
    """Make every refused call, and calls that change nothing."""
    unsharded, engine = pair()
    module = engine.module
    names = [name for name in REFUSED if callable(getattr(type(module), name, None))]
    texts = {name: refusal_of(lambda n=name: getattr(module, n)(1)) for name in names}
    texts["inner"] = refusal_of(lambda: module.model.resize_token_embeddings(1))
    texts["inner save"] = refusal_of(lambda: module.model.save_pretrained("."))
    texts["half"] = refusal_of(module.half)
    texts["to"] = refusal_of(lambda: module.to(torch.bfloat16))
    texts["device"] = refusal_of(lambda: module.to("meta"))
    texts["cuda"] = refusal_of(module.cuda)
    texts["torch.save"] = refusal_of(lambda: torch.save(module.model, io.BytesIO()))
    same = module.float() is module and module.cpu() is module and module.to("cpu", torch.float32) is module
    return {"texts": texts, "same": same, "gap": _gap(engine, unsharded), "in_step": in_step(rank)}


def adapters(rank: int, folder: str) -> dict[str, Any]:
    """Save LoRA adapters of a sharded model and load them into an unsharded one."""
    from peft import LoraConfig, PeftModel, get_peft_model

    base = build()
    unsharded = copy.deepcopy(base)
    torch.manual_seed(5)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    expected = copy.deepcopy(model).eval()
    engine, *_ = initialize(model=model, config={"tensor_parallel": {"autotp_size": 2}, "gradient_clipping": 0})
    engine.eval()
    engine.module.save_pretrained(folder)
    loaded = PeftModel.from_pretrained(unsharded, folder).eval()
    return {
        "saved": _gap(loaded, expected),
        "merge": refusal_of(engine.module.merge_and_unload),
        "gap": _gap(engine, expected),
        "in_step": in_step(rank),
    }
