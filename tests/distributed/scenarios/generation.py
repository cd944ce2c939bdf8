"""Tokens that a sharded model generates, beside those of the unsharded model; and ranks that would stop apart."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from tpinit.runtime import initialize
from tpinit.runtime.training.shared_generate import SharedGenerate
from transformers import GenerationConfig

from families import catalogue
from support.family_training import SGD
from support.refusals import error_of, in_step

Call = Callable[[Any, torch.Tensor], Any]


class PrefersToken:
    """A logits processor that makes one token likelier."""

    def __init__(self, token: int, by: float) -> None:
        self.token, self.by = token, by

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        changed = scores.clone()
        changed[:, self.token] += self.by
        return changed


class StopsAt:
    """A stopping criterion: a number of tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.full((len(ids),), ids.shape[1] >= self.length)


class Waits:
    """A logits processor that takes some seconds on each rank but the first, and raises there if `raises`."""

    def __init__(self, rank: int, seconds: float = 0.0, raises: bool = False) -> None:
        self.rank, self.seconds, self.raises = rank, seconds, raises

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds * self.rank)
        if self.raises and self.rank:
            raise ValueError("only on this rank")
        return scores


class Collects:
    """A streamer that keeps what it gets."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def put(self, tokens: torch.Tensor) -> None:
        self.seen.append(tokens.tolist())

    def end(self) -> None:
        self.seen.append("end")


def generate(model: Any, ids: torch.Tensor, **options: Any) -> Any:
    """Generate from fixed seeds; return the tokens, or all items but the cache, as nested lists."""
    torch.manual_seed(11)
    settings = {"max_new_tokens": 6, "use_cache": True, "pad_token_id": 0, "do_sample": False, **options}
    result = model.generate(input_ids=ids, **settings)
    return result if isinstance(result, torch.Tensor) else {k: v for k, v in result.items() if k != "past_key_values"}


def streamed(model: Any, ids: torch.Tensor) -> Any:
    streamer = Collects()
    return [generate(model, ids[:1], streamer=streamer).tolist(), streamer.seen]


DETAILS = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
}
CALLS: dict[str, Call] = {
    "greedy": generate,
    "without a cache": lambda model, ids: generate(model, ids, use_cache=False),
    "sampled": lambda model, ids: generate(model, ids, do_sample=True, temperature=1.5, num_return_sequences=2),
    "beams": lambda model, ids: generate(model, ids, num_beams=3, num_return_sequences=2),
    "sampled beams": lambda model, ids: generate(model, ids, num_beams=2, do_sample=True),
    "processor": lambda model, ids: generate(model, ids, logits_processor=[PrefersToken(7, 1.5)]),
    "criterion": lambda model, ids: generate(model, ids, stopping_criteria=[StopsAt(5)]),
    "streamer": streamed,
    "details": lambda model, ids: generate(model, ids, **DETAILS),
    "details of beams": lambda model, ids: generate(model, ids, num_beams=2, **DETAILS),
    "much time": lambda model, ids: generate(model, ids, max_time=1000.0),
    "much time in a config": lambda model, ids: model.generate(
        ids, GenerationConfig(max_new_tokens=4, do_sample=False, max_time=1000.0)
    ),
}
DECODER_CALLS: dict[str, Call] = {
    "static cache": lambda model, ids: generate(model, ids, cache_implementation="static"),
    "a draft from the prompt": lambda model, ids: generate(
        model, torch.cat([ids[:1], ids[:1]], 1), prompt_lookup_num_tokens=3
    ),
    "assisted": lambda model, ids: generate(model, ids[:1], assistant_model=catalogue.build("llama", seed=3).eval()),
}


def unequal(one: Any, other: Any) -> bool:
    """Return whether two nested results differ by more than rounding."""
    if isinstance(one, torch.Tensor):
        return one.shape != other.shape or not torch.allclose(one, other, atol=1e-4)
    if isinstance(one, dict):
        return list(one) != list(other) or any(unequal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) != len(other) or any(unequal(*two) for two in zip(one, other, strict=True))
    return bool(one != other)


def differences(unsharded: Any, engine: Any, ids: torch.Tensor, calls: dict[str, Call]) -> list[str]:
    return [name for name, call in calls.items() if unequal(call(unsharded, ids), call(engine.module, ids))]


def whole_and_sharded(name: str, lora: bool = False, sequence_parallel: bool = False) -> tuple[Any, Any]:
    """Return a family's small model, and the engine of a sharded copy."""
    model: Any = catalogue.build(name)
    if lora:
        torch.manual_seed(0)
        adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(model, adapters)
    unsharded = copy.deepcopy(model)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": 2},
    }
    return unsharded, initialize(model=model, config=config, sequence_parallel=sequence_parallel)[0]


def generated(rank: int, name: str, lora: bool = False, sequence_parallel: bool = False) -> dict[str, Any]:
    """Return the calls whose results differ from the unsharded model's, before and after a training step."""
    unsharded, engine = whole_and_sharded(name, lora, sequence_parallel)
    ids = catalogue.batch("llama", unsharded, 3)["input_ids"][:, :4]
    unsharded.eval()
    engine.eval()
    calls = CALLS | (DECODER_CALLS if name == "llama" and not lora else {})
    found = {"before": differences(unsharded, engine, ids, calls)}
    unsharded.train()
    engine.train()
    batch = catalogue.batch(name, unsharded, 0)
    optimizer = torch.optim.SGD([one for one in unsharded.parameters() if one.requires_grad], **SGD["params"])
    unsharded(**batch).loss.backward()
    optimizer.step()
    engine.backward(engine(**batch).loss)
    engine.step()
    some = {key: CALLS[key] for key in ("greedy", "sampled", "details")}
    found["in training mode"] = differences(unsharded, engine, ids, some)
    with torch.inference_mode():
        found["after a step"] = differences(unsharded.eval(), engine.eval(), ids, some)
    return found


# --- ranks that stop apart -------------------------------------------------------------------------------


def apart(rank: int, lora: bool = False) -> dict[str, Any]:
    """Let the ranks generate different numbers of tokens, different tokens, raise on one rank, or use up their time."""
    _, engine = whole_and_sharded("llama", lora)
    ids = catalogue.batch("llama", engine.module, 3)["input_ids"][:, :4]
    module = engine.eval().module
    calls: dict[str, Callable[[], Any]] = {
        "lengths": lambda: generate(module, ids, stopping_criteria=[StopsAt(6 + rank)]),
        "last token": lambda: generate(module, ids, max_new_tokens=1, logits_processor=[PrefersToken(9 + rank, 99.0)]),
        "raised": lambda: generate(module, ids, logits_processor=[Waits(rank, raises=True)]),
    }
    errors = {name: error_of(call) for name, call in calls.items()}
    timed = generate(module, ids, max_new_tokens=40, max_time=0.3, logits_processor=[Waits(rank, 0.05)])
    bad = error_of(lambda: generate(module, ids + 1000))
    return {"errors": errors, "timed": timed.tolist(), "bad": bad["type"], "in_step": in_step(rank)}


def without_the_end(rank: int) -> list[Any]:
    """Return the last tokens of ranks that draw apart, without the comparison behind `generate`: the control."""
    _, engine = whole_and_sharded("llama")
    ids = catalogue.batch("llama", engine.module, 3)["input_ids"][:, :4]
    kept, SharedGenerate._compare_end = SharedGenerate._compare_end, lambda *_: None  # type: ignore[assignment, method-assign]  # a control
    try:
        mine = generate(engine.module, ids, max_new_tokens=1, logits_processor=[PrefersToken(9 + rank, 99.0)])
    finally:
        SharedGenerate._compare_end = kept  # type: ignore[method-assign]  # the control ends
    shared: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shared, mine.tolist())
    return shared


def replicas(rank: int) -> dict[str, Any]:
    """Generate from other prompts, to other lengths and in another number of calls, in each of two TP groups."""
    unsharded, engine = whole_and_sharded("llama")
    place = engine.groups.data_index
    ids = catalogue.batch("llama", unsharded, 3 + place)["input_ids"][:, : 3 + 2 * place]
    calls: list[dict[str, Any]] = [
        {"max_new_tokens": 3 + 4 * place},
        {"max_new_tokens": 5 - 2 * place, "num_beams": 2},
        {"max_new_tokens": 3 + 4 * place, "do_sample": True},
    ]
    unsharded.eval()
    engine.eval()
    pairs = [[generate(model, ids, **call).tolist() for model in (unsharded, engine.module)] for call in calls]
    if place == 0:
        generate(engine.module, ids, max_new_tokens=2)
    shape = [len(pairs[0][0]), len(pairs[0][0][0])]
    return {"same": [one == other for one, other in pairs], "shape": shape, "in_step": in_step(rank)}
