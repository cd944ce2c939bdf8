"""A small model with the structure of a large one: the same heads, kinds of layers and remainders, smaller widths.

A recorded step of the small model stands for one of the large model only if both are sharded alike: `check_plans`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tpinit.reference.errors import TpinitError
from tpinit.runtime.loading.open_model import build_without_weights, model_class_of
from tpinit.runtime.planning import Plan, make_plan
from tpinit.runtime.planning.analysis.example_labels import example_labels
from tpinit.runtime.planning.analysis.train_trace import dry_run_inputs, with_length
from tpinit.runtime.recording.errors import RecordError

__all__ = ["SmallConfig", "build_small", "check_plans", "small_batch", "small_config"]

# The names of a config's settings by what they count. A name that is not here keeps its value.
_NAMES = {
    "layers": "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers"
    " num_decoder_layers",
    "heads": "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads",
    "kv heads": "num_key_value_heads num_kv_heads kv_n_heads",
    "head dim": "head_dim d_kv kv_channels attention_head_dim v_head_dim qk_rope_head_dim qk_nope_head_dim"
    " global_head_dim",
    "hidden": "hidden_size d_model n_embd dim",
    "input": "word_embed_proj_dim embedding_size",
    "inner": "intermediate_size n_inner ffn_dim d_ff ffn_hidden_size encoder_ffn_dim decoder_ffn_dim"
    " moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size"
    " intermediate_size_mlp kv_lora_rank q_lora_rank expert_ffn_hidden_size feed_forward_size",
    "vocabulary": "vocab_size",
}
# The largest value of further settings in the small model.
_LARGEST = {
    64: "max_position_embeddings n_positions n_ctx max_seq_len",
    8: "num_local_experts num_experts n_routed_experts moe_num_experts",
    4: "sliding_window window_size attention_chunk_size",
    2: "num_experts_per_tok num_experts_per_token moe_k moe_topk n_group",
    1: "topk_group first_k_dense_replace",
}
_HEAD_DIM = 8
_MANY_HEADS = 32
_MULTIPLE = 16  # widths keep their remainder by this on each rank: kernels for experts need aligned rows


@dataclass(frozen=True, slots=True)
class SmallConfig:
    """Two transformers configs with the same few layers and without dropout: one as wide as the given one, one small.

    `notes` say in words what was changed besides widths.
    """

    wide: Any
    small: Any
    notes: tuple[str, ...] = ()


def small_config(config: Any, tp_size: int, layers: int = 2) -> SmallConfig:
    """Return a transformers config with few layers, and the same with small widths.

    `layers` is the number of layers, at least one of each kind. Widths and vocabulary keep their remainder by
    `tp_size`; the numbers of heads are kept, or, if there are more than 32, divided by a common factor that keeps
    their remainders. The given config is not changed.
    """
    wide = copy.deepcopy(config)
    notes: list[str] = []
    dropped = sorted({name for part in _parts(wide) for name in _drop_nothing(part)})
    if dropped:
        notes.append(f"dropout is off: {', '.join(dropped)} are set to 0")
    kept = max(_set_layers(part, layers) for part in _parts(wide))
    notes.append(
        f"it is a model of {kept} layers and small widths, sharded like the given one: other widths are not proven"
    )
    small = copy.deepcopy(wide)
    for part in _parts(small):
        _set_widths(part, tp_size)
    return SmallConfig(wide, small, tuple(notes))


def build_small(config: Any, attention: str = "eager") -> nn.Module:
    """Return a model of a small config in fp32 and training mode, its parameters drawn from one seed.

    `attention` is the attention implementation of transformers. Raises RecordError if the class can't be built so, and
    LoadError for a config whose class is unknown.
    """
    kind: Any = model_class_of(config)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: nn.Module = kind(copy.deepcopy(config))
        set_implementation: Callable[[str], None] | None = getattr(model, "set_attn_implementation", None)
        if set_implementation is not None:
            set_implementation(attention)
        return model.float().train()
    except Exception as error:  # the model's own code
        raise RecordError(
            f"no small {kind.__qualname__} can be built from this config: {type(error).__name__}: {str(error)[:300]}. "
            "fix: build a small model with the structure of yours, and pass it to tpinit.runtime.verify_step"
        ) from error


def small_batch(model: nn.Module, tokens: int | None = None) -> dict[str, Any]:
    """Return a batch for a model, with labels: token ids [2, tokens]. Raises RecordError if none gives it a loss."""
    inputs = dry_run_inputs(model, None)
    if inputs is None:
        raise RecordError(
            f"a {type(model).__qualname__} has no transformers config that describes its inputs. fix: pass the model "
            "and a batch to tpinit.runtime.verify_step"
        )
    if tokens is not None:
        cut = with_length(inputs, tokens)
        inputs = {name: one.contiguous() if isinstance(one, torch.Tensor) else one for name, one in cut.items()}
    reasons = []
    for labels in example_labels(model, inputs):
        batch = {**inputs, **labels}
        try:
            with torch.no_grad():
                loss = getattr(copy.deepcopy(model)(**batch), "loss", None)
        except Exception as error:  # of the model's own code: these labels may not be of the kind that it takes
            reasons.append(f"{type(error).__name__}: {str(error)[:200]}")
            continue
        if isinstance(loss, torch.Tensor):
            return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    reason = reasons[0] if reasons else "its output has no `loss`"
    raise RecordError(
        f"no labels of a token or a row give a {type(model).__qualname__} a loss ({reason}). fix: pass the model and a "
        "batch with its labels to tpinit.runtime.verify_step"
    )


def check_plans(config: SmallConfig, tp_size: int, section: Mapping[str, object], sequence_parallel: bool) -> None:
    """Raise RecordError, naming the first difference, unless the wide and the small model are sharded alike.

    Compared is, for every parameter, along which dimension it is sharded and how its gradients combine; and what every
    layer and block becomes. The models are planned on the meta device. `section` is the `tensor_parallel` section of
    the config. Raises what `make_plan` raises for the wide model.
    """
    wide = _structure(
        make_plan(build_without_weights(config.wide).model, tp_size, section, sequence_parallel=sequence_parallel)
    )
    try:
        small = _structure(
            make_plan(build_without_weights(config.small).model, tp_size, section, sequence_parallel=sequence_parallel)
        )
    except TpinitError as error:
        raise RecordError(f"the model can be sharded, but not one of small widths: {error}{_ADVICE}") from error
    for name in dict.fromkeys((*wide, *small)):
        first, second = wide.get(name, "not there"), small.get(name, "not there")
        if first != second:
            raise RecordError(
                f"a model of small widths is sharded otherwise: {name} is {first}, and in the small model {second}"
                f"{_ADVICE}"
            )


_ADVICE = ". fix: pass a small model of your own, that is sharded like yours, to tpinit.runtime.verify_step"


def _structure(plan: Plan) -> dict[str, str]:
    """Return what a plan does with each parameter, layer, block and list of layers, without sizes, in words."""
    found: dict[str, str] = {}
    for one in plan.parameters:
        parts = f" in {len(one.fused_sizes)} fused parts" if one.fused_sizes else ""
        where = "" if one.dim is None else f" along dimension {one.dim}{parts}"
        tied = f", tied to {', '.join(one.names[1:])}" if len(one.names) > 1 else ""
        found[one.name] = f"{one.cut.value}{where} (gradient {one.gradient_rule.value}){tied}"
    for layer in plan.layers:
        flags = (layer.reduce_input_grad, layer.draws_random, layer.fused_with, layer.scatter_output)
        found[f"layer {layer.module}"] = f"{layer.kind.value} {flags}"
    for block in plan.blocks:
        attributes = [path for path, _ in block.attributes]
        names = (attributes, block.head_arguments, block.head_outputs, block.first_rank_only)
        found[f"block {block.module}"] = str(names)
    for sequence in plan.sequences:
        found[f"layers {sequence.stack}"] = str(sequence)
    return found


# --- settings --------------------------------------------------------------------------------------------


def _parts(config: Any) -> Iterator[Any]:
    """Yield a config and its nested configs."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict"):
            yield from _parts(value)


def _drop_nothing(config: Any) -> list[str]:
    """Set every probability of dropout of a config to 0, and return the names of those that were not."""
    changed = []
    for name, value in list(vars(config).items()):
        random = "drop" in name or name.endswith("jitter_noise")
        if random and isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
            setattr(config, name, 0.0)
            changed.append(name)
    return changed


def _counts(config: Any, names: str) -> dict[str, int]:
    """Return the settings of a config that are integers of at least 1, and have one of these names."""
    legal = set(names.split())
    return {name: value for name, value in vars(config).items() if name in legal and type(value) is int and value >= 1}


def _set_layers(config: Any, layers: int) -> int:
    """Give a config few layers, one of each kind at least, and return their number; 0 for a part without layers."""
    counts = _counts(config, _NAMES["layers"])
    lists = {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list) and value and len(value) in counts.values()
    }
    kinds = list(zip(*lists.values(), strict=True)) if len({len(one) for one in lists.values()}) == 1 else []
    distinct = list({repr(kind): index for index, kind in reversed(list(enumerate(kinds)))}.values())[::-1]
    kept = max(layers, len(distinct))
    for name, value in counts.items():
        setattr(config, name, min(value, kept))
    chosen = [*distinct, *(index for index in range(len(kinds)) if index not in distinct)][:kept]
    for name, listed in lists.items():
        setattr(config, name, [listed[index] for index in sorted(chosen)] if kinds else listed[:kept])
    return min(max(counts.values(), default=0), kept)


def _set_widths(config: Any, tp_size: int) -> None:
    heads, kv_heads = _counts(config, _NAMES["heads"]), _counts(config, _NAMES["kv heads"])
    factor = _head_factor([*heads.values(), *kv_heads.values()], tp_size)
    for name, value in {**heads, **kv_heads}.items():
        setattr(config, name, value // factor)
    head_dim, hidden = _HEAD_DIM, math.lcm(*(value // factor for value in heads.values())) * _HEAD_DIM
    true_hidden = next(iter(_counts(config, _NAMES["hidden"]).values()), None)
    true_head_dim = vars(config).get("head_dim")
    if true_hidden is not None and type(true_head_dim) is int and "qk_rope_head_dim" not in vars(config):
        whole = next(iter(heads.values()), 1) * true_head_dim
        head_dim = _HEAD_DIM if whole == true_hidden else 2 * _HEAD_DIM
    for name in _counts(config, _NAMES["hidden"]):
        setattr(config, name, hidden)
    for name, value in _counts(config, _NAMES["input"]).items():
        setattr(config, name, hidden if value == true_hidden else 3 * _HEAD_DIM)
    for name in _counts(config, _NAMES["head dim"]):
        setattr(config, name, head_dim)
    if "qk_head_dim" in vars(config):
        config.qk_head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
    if "rotary_dim" in vars(config) and type(config.rotary_dim) is int:
        config.rotary_dim = _HEAD_DIM // 2
    _set_small(config, tp_size, {hidden})


def _set_small(config: Any, tp_size: int, used: set[int]) -> None:
    """Set inner widths, vocabularies and bounded counts, the first two to sizes that no other dimension has."""
    step = _MULTIPLE * tp_size
    for name, value in {**_counts(config, _NAMES["inner"]), **_counts(config, _NAMES["vocabulary"])}.items():
        small = 3 * step + value % step
        while small in used:
            small += step
        used.add(small)
        setattr(config, name, min(small, value))
        if name == _NAMES["vocabulary"]:
            _set_token_ids(config, min(small, value))
    for largest, names in _LARGEST.items():
        for name, value in _counts(config, names).items():
            setattr(config, name, min(value, largest))


def _set_token_ids(config: Any, vocabulary: int) -> None:
    """Replace the ids of special tokens that a small vocabulary lacks by its last ones."""
    last = vocabulary - 1
    for name, value in sorted(vars(config).items()):
        if name.endswith(("_token_id", "_token_index")) and type(value) is int and value >= vocabulary:
            setattr(config, name, last)
            last -= 1


def _head_factor(counts: list[int], tp_size: int) -> int:
    """Return the largest common divisor that keeps how these numbers of heads are shared; 1 for at most 32 heads."""
    if max(counts, default=0) <= _MANY_HEADS:
        return 1
    common = math.gcd(*counts)
    legal = [
        factor
        for factor in range(1, common + 1)
        if common % factor == 0 and all(_alike(one // factor, one, tp_size) for one in counts)
    ]
    return max(legal)


def _alike(small: int, count: int, tp_size: int) -> bool:
    """Return whether so many heads are shared by the ranks like `count` heads: with one left, nothing is sharded."""
    return (small - count) % tp_size == 0 and small >= min(count, 2 * tp_size)
