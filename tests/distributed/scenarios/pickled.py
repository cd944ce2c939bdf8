"""A sharded model that is pickled, and read again in its place, beside another model, and nowhere."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize
from tpinit.runtime.training.gradient_parts import plain_gradient

from families import catalogue
from scenarios.every_call import same
from support.refusals import in_step, refusal_of
from support.tiny_models import build, tokens


class _Read:
    """A model that was read, in the place of an engine's."""

    def __init__(self, module: Any, plan: Any) -> None:
        self.module, self.plan = module, plan


def _engine(model: Any, **more: Any) -> Any:
    config = {"tensor_parallel": {"autotp_size": dist.get_world_size()}, "gradient_clipping": 0}
    return initialize(model=model, config=config, **more)[0]


def _saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


_WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": _saved,
    "in a list, and again": lambda model: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps([model, model]))[1])),
}


def round_trips(rank: int) -> dict[str, Any]:
    """Change a sharded model, pickle it in each way, and train what is read beside the unsharded model."""
    model = build(tie_word_embeddings=True)
    whole = copy.deepcopy(model)
    engine = _engine(model)
    for one in (whole, engine.module):
        one.config.pad_token_id = 3
        one.eval()
        one.model.layers[0].mlp.train()
        one.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
        one.epoch = 7
        one.model.rotary_emb.inv_freq.mul_(1.5)
        with torch.no_grad():
            one.model.norm.weight.mul_(2)
    values = {name: value.clone() for name, value in engine.module.state_dict().items()}
    first = pickle.dumps(engine.module)
    with torch.no_grad():
        engine.module.model.norm.weight.zero_()  # a pickle has the values of its time
    engine.module.later = True
    read = pickle.loads(first)
    found = {"values": all(torch.equal(value, values[name]) for name, value in read.state_dict().items())}
    found["later"] = not hasattr(read, "later")
    with torch.no_grad():
        engine.module.model.norm.weight.copy_(read.model.norm.weight)
    for way, call in _WAYS.items():
        twin = call(engine.module)
        found[way] = same(_Read(twin, engine.plan), whole)
        found[f"{way}, state"] = (
            (twin.config.pad_token_id, twin.training, twin.model.layers[0].mlp.training, twin.epoch)
            == (3, False, True, 7)
            and not twin.model.layers[1].mlp.up_proj.weight.requires_grad
            and twin.model.layers[0].mlp.up_proj.weight is not engine.module.model.layers[0].mlp.up_proj.weight
        )
    shallow = copy.copy(engine.module)
    found["copy.copy"] = shallow.model is engine.module.model
    found["the model itself"] = same(engine, whole)
    return {"found": found, "in_step": in_step(rank)}


def _own() -> Any:
    return build(intermediate_size=56)  # a plan of no other test, whose models may live on


def elsewhere(rank: int) -> dict[str, Any]:
    """Read a pickle on the other rank, beside another model, and where its engine was destroyed."""
    engine = _engine(_own())
    mine = pickle.dumps(engine.module)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    texts = {
        "another rank": refusal_of(lambda: pickle.loads(parts[1 - rank])),
        "a module inside": refusal_of(lambda: pickle.dumps(engine.module.model)),
        "the engine": refusal_of(lambda: pickle.dumps(engine)),
    }
    handle = engine.module.model.register_forward_hook(lambda *_: None)
    texts["a hook"] = refusal_of(lambda: pickle.dumps(engine.module))
    texts["a hook there"] = refusal_of(lambda: pickle.loads(mine))
    handle.remove()
    engine.module.model.beside = [engine.module.lm_head.weight]
    texts["a parameter beside"] = refusal_of(lambda: pickle.dumps(engine.module))
    del engine.module.model.beside
    right = isinstance(pickle.loads(mine), type(engine.module))
    engine.destroy()
    texts["destroyed"] = refusal_of(lambda: pickle.loads(mine))
    other = _engine(build(intermediate_size=72))
    texts["another plan"] = refusal_of(lambda: pickle.loads(mine))
    half = _engine(_own().bfloat16())
    texts["another dtype"] = refusal_of(lambda: pickle.loads(mine))
    again = _engine(_own())
    read = pickle.loads(mine)
    with torch.no_grad():
        equal = torch.equal(read(input_ids=tokens()).logits, again.module(input_ids=tokens()).logits)
    del other, half
    return {"texts": texts, "right": right, "again": equal, "in_step": in_step(rank)}


def of_size_one(rank: int) -> dict[str, Any]:
    """Train a model of TP size 1 over two data-parallel ranks, and pickle it: what is read is whole, and alone."""
    model = build()
    config = {"tensor_parallel": {"autotp_size": 1}, "train_micro_batch_size_per_gpu": 2, "gradient_clipping": 0}
    engine = initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), config=config)[0]
    engine.backward(engine(input_ids=tokens(), labels=tokens()).loss)
    engine.step()
    read = pickle.loads(pickle.dumps(engine.module))
    logits = [one(input_ids=tokens()).logits for one in (read, engine.module)]
    return {"equal": torch.equal(*logits), "class": type(read) is type(engine.module), "in_step": in_step(rank)}


def of_family(rank: int, family: str, parallel: bool) -> dict[str, Any]:
    """Pickle a family with experts, patched blocks or sharded tokens, and compute with what is read."""
    engine = _engine(catalogue.build(family), sequence_parallel=parallel)
    ids = {"input_ids": torch.arange(8).reshape(2, 4) + 2}
    twin = pickle.loads(pickle.dumps(engine.module))
    losses = [one(**ids, labels=ids["input_ids"]).loss for one in (twin, engine.module)]
    for loss in losses:
        loss.backward()
    pairs = [(one.grad, other.grad) for one, other in zip(twin.parameters(), engine.module.parameters(), strict=True)]
    gaps = [
        float(plain_gradient(one - other).abs().max()) for one, other in pairs if one is not None and other is not None
    ]
    apart = abs(float(losses[0].detach() - losses[1].detach()))
    return {"gap": max(*gaps, apart), "gradients": len(gaps), "in_step": in_step(rank)}
