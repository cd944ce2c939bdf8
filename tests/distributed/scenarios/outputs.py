"""What a sharded model takes in and gives out, beside the unsharded model: ids, labels, attentions, hidden states."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from torch.nn import functional
from torch.utils import _pytree as pytree

from support.pairs import pair
from support.refusals import in_step, refusal_of
from support.tiny_models import tokens


def attentions_and_hidden_states(rank: int) -> dict[str, Any]:
    """Compare the attentions and hidden states of both models; ask for attentions in a tuple."""
    unsharded, engine = pair()
    ids = tokens()
    asked = {"input_ids": ids, "output_attentions": True, "output_hidden_states": True}
    expected, actual = unsharded(**asked), engine(**asked)
    far = [
        float((one - other).abs().max().detach())
        for name in ("attentions", "hidden_states")
        for one, other in zip(actual[name], expected[name], strict=True)
    ]
    penalty = sum(layer.square().sum() for layer in actual.attentions)
    penalty.backward()
    sum(layer.square().sum() for layer in expected.attentions).backward()
    norm = engine.module.model.layers[0].input_layernorm.weight.grad
    return {
        "shapes": [
            tuple(one.shape) == tuple(other.shape)
            for one, other in zip(actual.attentions, expected.attentions, strict=True)
        ],
        "far": max(far),
        "gradient": float((norm - unsharded.model.layers[0].input_layernorm.weight.grad).abs().max()),
        "tuple": refusal_of(lambda: engine(input_ids=ids, output_attentions=True, return_dict=False)),
        "plain": engine(input_ids=ids).attentions is None,
        "in_step": in_step(rank),
    }


def legal_inputs(ids: torch.Tensor, labels: torch.Tensor) -> list[dict[str, Any]]:
    """Return keywords of calls with labels that the unsharded model takes too."""
    plain = {"input_ids": ids, "labels": labels}
    packed = torch.cat([torch.arange(5), torch.arange(7)]).expand(1, 12)
    embeddings = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
    return [
        {**plain, "num_items_in_batch": 7},
        {**plain, "num_items_in_batch": torch.tensor(7)},
        {**plain, "shift_labels": torch.roll(labels, -1, 1)},
        {"input_ids": ids, "labels": ids, "ignore_index": 5},
        {**plain, "position_ids": torch.arange(12).expand(2, 12) + 3},
        {"input_ids": ids[:1], "labels": labels[:1], "position_ids": packed},
        {"inputs_embeds": embeddings, "labels": labels},
    ]


def ids_and_labels_outside(rank: int) -> dict[str, Any]:
    """Give ids and labels outside of the vocabulary, and legal ones at its ends."""
    unsharded, engine = pair()
    vocabulary = unsharded.config.vocab_size
    legal = tokens()
    legal[0, 0], legal[0, 1] = 0, vocabulary - 1
    labels = legal.clone()
    labels[0, 2] = -100

    def run(ids: Any, targets: Any) -> Any:
        return engine(input_ids=ids, labels=targets).loss

    def changed(tensor: torch.Tensor, value: int) -> torch.Tensor:
        other = tensor.clone()
        other[1, 3] = value
        return other

    loss, expected = run(legal, labels), unsharded(input_ids=legal, labels=labels).loss
    return {
        "far": float((loss - expected).abs().detach()),
        "ids": {value: refusal_of(lambda v=value: run(changed(legal, v), labels)) for value in (vocabulary, -1)},
        "labels": {value: refusal_of(lambda v=value: run(legal, changed(labels, v))) for value in (vocabulary, -1)},
        "kinds": {
            "float labels": refusal_of(lambda: run(legal, labels.float())),
            "bool labels": refusal_of(lambda: run(legal, labels > 5)),
            "a list of labels": refusal_of(lambda: run(legal, labels.tolist())),
            "fewer labels": refusal_of(lambda: run(legal, labels[:, :-2])),
            "labels of one sample": refusal_of(lambda: run(legal, labels[:1])),
            "float ids": refusal_of(lambda: run(legal.float(), labels)),
            "a list of ids": refusal_of(lambda: run(legal.tolist(), labels)),
        },
        "legal": [
            float((engine(**inputs).loss - unsharded(**inputs).loss).abs().detach())
            for inputs in legal_inputs(legal, labels)
        ],
        "int32": float((run(legal.int(), labels.int()) - expected).abs().detach()),
        "nothing": bool(run(legal, torch.full_like(labels, -100)).isnan()),
        "in_step": in_step(rank),
    }


# --- logits beside labels --------------------------------------------------------------------------------

READS: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda output: output.logits,
    "name": lambda output: output["logits"],
    "get": lambda output: output.get("logits"),
    "index": lambda output: output[1],
    "index from the end": lambda output: output[-2],
    "slice": lambda output: output[:2],
    "tuple": lambda output: output.to_tuple(),
    "a copy": lambda output: copy.copy(output).logits,
    "in fp32": lambda output: convert_to_fp32(output).logits,
    "from a pytree": lambda output: pytree.tree_map(lambda leaf: leaf, output).logits,
}
"""Ways to read the logits of an output that has a loss, logits and hidden states."""

OTHER_USES: dict[str, Callable[[Any], Any]] = {
    "loss": lambda output: output["loss"] if isinstance(output, dict) else output[0],  # as in transformers' Trainer
    "first": lambda output: output[0],
    "first of a slice": lambda output: output[:1],
    "behind the logits": lambda output: output[2],
    "last": lambda output: output[-1],
    "get": lambda output: output.get("loss"),
    "class": lambda output: type(output).__name__,
    "attribute": lambda output: output.hidden_states,
    "in fp32": lambda output: convert_to_fp32(output).loss,
    "pickled": lambda output: pickle.loads(pickle.dumps(convert_to_fp32(output))).loss,
    "leaves": lambda output: pytree.tree_leaves(output)[0],
}
"""Uses of an output that do not read its logits, and what the unsharded model's output gives for them."""


def same(one: Any, other: Any) -> bool:
    """Return whether two results are equal: tensors up to rounding, in nested tuples and lists too."""
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.allclose(one, other, atol=1e-5)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(same(*two) for two in zip(one, other, strict=True))
    return bool(one == other)


def smoothed_loss(model: Any, **inputs: Any) -> Any:
    """Return a loss with label smoothing, from the logits of a call with labels, added to the model's own loss."""
    output = model(**inputs)
    logits = output.logits[:, :-1].flatten(0, 1)
    return output.loss + functional.cross_entropy(logits, inputs["labels"][:, 1:].flatten(), label_smoothing=0.2)


def logits_beside_labels(rank: int, gather_logits: bool = False) -> dict[str, Any]:
    """Read logits beside labels in training, in evaluation mode, without gradients, and in a tuple."""
    unsharded, engine = pair(gather_logits=gather_logits)
    ids = tokens()
    inputs = {"input_ids": ids, "labels": ids}
    expected, actual = (model(**inputs, output_hidden_states=True) for model in (unsharded, engine))
    found: dict[str, Any] = {
        "refused": {name: refusal_of(lambda read=read: read(actual)) for name, read in READS.items()},
        "unequal": [name for name, use in OTHER_USES.items() if not same(use(expected), use(actual))],
        "has": (hasattr(actual, "logits"), "logits" in actual, "not gathered" in repr(actual)),
        "smoothed": refusal_of(lambda: smoothed_loss(engine, **inputs)),
        "tuple": same(unsharded(**inputs, return_dict=False), engine(**inputs, return_dict=False)),
    }
    if gather_logits:
        found["read"] = [name for name, read in READS.items() if not same(read(expected), read(actual))]
    with torch.no_grad():
        found["without gradients"] = same(unsharded(**inputs).logits, engine(**inputs).logits)
    unsharded.eval()
    engine.eval()
    losses = [smoothed_loss(model, **inputs) for model in (unsharded, engine)]
    for loss in losses:
        loss.backward()
    norm = engine.module.model.layers[0].input_layernorm.weight.grad
    found["evaluation"] = same(*losses)
    found["gradient"] = float((norm - unsharded.model.layers[0].input_layernorm.weight.grad).abs().max())
    found["in_step"] = in_step(rank)
    return found


def caches(rank: int) -> dict[str, Any]:
    """Generate by hand with caches of both models; crop, repeat and copy them; read the tensors of one."""
    unsharded, engine = pair()
    ids, outputs, tokens_ = tokens()[:, :4], [], []
    for model in (unsharded.eval(), engine.eval()):
        with torch.no_grad():
            output = model(input_ids=ids, use_cache=True)
            chosen = []
            for _ in range(4):
                chosen.append(output.logits[:, -1:].argmax(-1))
                cache = copy.deepcopy(output.past_key_values)
                output = model(input_ids=chosen[-1], past_key_values=cache, use_cache=True)
            output.past_key_values.crop(-2)
            output.past_key_values.batch_repeat_interleave(2)
            output.past_key_values.reorder_cache(torch.tensor([3, 2, 1, 0]))
            twice = ids[:, :1].repeat_interleave(2, 0)
            outputs.append(model(input_ids=twice, past_key_values=output.past_key_values, use_cache=True))
            tokens_.append(torch.cat(chosen, 1).tolist())
    held, whole = (output.past_key_values for output in reversed(outputs))
    generated = engine.module.generate(
        ids, max_new_tokens=2, use_cache=True, do_sample=False, return_dict_in_generate=True, pad_token_id=0
    )
    reads: dict[str, Callable[[], Any]] = {
        "keys": lambda: held.layers[0].keys,
        "values": lambda: held.layers[1].values,
        "items": lambda: list(held),
        "pickle": lambda: pickle.dumps(held),
        "copy": lambda: copy.deepcopy(held).layers[0].keys,
        "generated": lambda: generated.past_key_values.layers[0].keys,
        "unsharded model": lambda: unsharded(input_ids=twice, past_key_values=copy.deepcopy(held)),
        "tuple": lambda: engine(input_ids=ids, use_cache=True, return_dict=False)[1].layers[0].keys,
    }
    return {
        "tokens": tokens_[0] == tokens_[1],
        "far": float((outputs[0].logits - outputs[1].logits).abs().max()),
        "length": held.get_seq_length() - whole.get_seq_length(),
        "reads": {name: refusal_of(read) for name, read in reads.items()},
        "whole": tuple(whole.layers[0].keys.shape),  # the unsharded model's cache is as it was
        "in_step": in_step(rank),
    }
