"""The plan of a transformers decoder: Llama, Qwen2, Mistral, Phi3, their causal language models and base models.

A model is recognised by the exact types of its modules. Whatever owns a parameter and is not known here is
refused by name: a subclass may compute something else, and a plan that guesses is silently wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.plan.records import Cut, GradientRule, ParameterPlan, Plan, RegionPlan

__all__ = ["plan_model"]

_FAMILIES = ("Llama", "Qwen2", "Mistral", "Phi3")
_FUSED = ("Phi3",)


@dataclass(frozen=True, slots=True)
class _Block:
    """A module type whose children are column layers reading one argument, then one row layer."""

    argument: str
    columns: tuple[str, ...]
    row: str
    attention: bool


@dataclass(frozen=True, slots=True)
class _Lie:
    """How a parameter lies over the group: its cut, the dimension cut, and how much of it stays together."""

    cut: Cut = Cut.REPLICATED
    dim: int | None = None
    unit: int = 1
    blocks: tuple[int, ...] = ()


_ATTENTION = _Block("hidden_states", ("q_proj", "k_proj", "v_proj"), "o_proj", attention=True)
_MLP = _Block("x", ("gate_proj", "up_proj"), "down_proj", attention=False)
_FUSED_ATTENTION = _Block("hidden_states", ("qkv_proj",), "o_proj", attention=True)
_FUSED_MLP = _Block("hidden_states", ("gate_up_proj",), "down_proj", attention=False)


def _home(family: str) -> str:
    return f"transformers.models.{family.lower()}.modeling_{family.lower()}"


def _blocks_of(family: str) -> tuple[_Block, _Block]:
    return (_FUSED_ATTENTION, _FUSED_MLP) if family in _FUSED else (_ATTENTION, _MLP)


_BLOCKS = {
    (_home(family), f"{family}{kind}"): block
    for family in _FAMILIES
    for kind, block in zip(("Attention", "MLP"), _blocks_of(family), strict=True)
}
_REPLICATED = {(_home(family), f"{family}RMSNorm") for family in _FAMILIES} | {("torch.nn.modules.sparse", "Embedding")}
_HEADED = {(_home(family), f"{family}ForCausalLM") for family in _FAMILIES}


def plan_model(model: nn.Module, tp_size: int, tp_rank: int) -> Plan:
    """Return the plan of `model` for one rank of a TP group. Reads the model, changes nothing.

    With a `tp_size` of 1 nothing is cut, and every model is covered. Raises PlanError, with everything that
    is wrong at once: parameters that no rule covers, sizes that do not divide (with the legal sizes),
    dropout inside the cut region, gradients or storage that a cut would break.
    """
    covered: dict[int, _Lie] = {}
    regions: list[RegionPlan] = []
    problems: list[tuple[str, str]] = []
    if tp_size > 1:
        for name, module in model.named_modules():
            block = _BLOCKS.get(_type_of(module))
            if block is not None:
                problems += _check_block(name, module, block, tp_size)
                regions.append(_region(name, module, block, tp_size))
            for parameter, how in _cuts(module, block):
                covered.setdefault(id(parameter), how)
    else:
        covered = {id(parameter): _Lie() for parameter in model.parameters()}
    records = tuple(_records(model, covered, problems))
    problems += _check_tensors(model)
    if problems:
        raise _refusal(model, problems, tp_size)
    return Plan(tp_size, tp_rank, records, tuple(regions))


def _type_of(module: nn.Module) -> tuple[str, str]:
    return type(module).__module__, type(module).__qualname__


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _region(name: str, module: nn.Module, block: _Block, tp_size: int) -> RegionPlan:
    columns = tuple(_joined(name, child) for child in block.columns)
    return RegionPlan(name, block.argument, columns, _joined(name, block.row), _local(module, block, tp_size))


def _local(module: nn.Module, block: _Block, tp_size: int) -> tuple[tuple[str, int], ...]:
    """A fused attention finds q, k and v by counting heads, of which it then has fewer."""
    if block is not _FUSED_ATTENTION:
        return ()
    heads, kv_heads, _ = _heads(module)
    return ("config.num_attention_heads", heads // tp_size), ("num_key_value_heads", kv_heads // tp_size)


def _cuts(module: nn.Module, block: _Block | None) -> Iterator[tuple[nn.Parameter, _Lie]]:
    """Yield every parameter that this module's type explains, and how it lies over the group."""
    kind = _type_of(module)
    if block is not None:
        lies = _lies(module, block)
        for child in block.columns:
            for _, parameter in _own(module, child):
                yield parameter, lies[child]
        for name, parameter in _own(module, block.row):
            # The bias of a row layer is added once, after the sum, so every rank holds all of it.
            yield parameter, lies[block.row] if name == "weight" else _Lie()
    elif kind in _REPLICATED:
        yield from ((parameter, _Lie()) for parameter in module.parameters(recurse=False))
    elif kind in _HEADED:
        yield from ((parameter, _Lie()) for _, parameter in _own(module, "lm_head"))


def _lies(module: nn.Module, block: _Block) -> dict[str, _Lie]:
    """Say how each layer's weight lies over the group. A block that is refused anyway lies anyhow."""
    if not _is_plain(module, block):
        return {child: _Lie(Cut.COLUMN, 0) for child in (*block.columns, block.row)}
    found = {}
    for child, counted in _counts(module, block).items():
        cut, dim = (Cut.ROW, 1) if child == block.row else (Cut.COLUMN, 0)
        lengths = tuple(one.count * one.width for one in counted)
        found[child] = _Lie(cut, dim, counted[0].width, lengths if len(lengths) > 1 else ())
    return found


def _is_plain(module: nn.Module, block: _Block) -> bool:
    return all(type(getattr(module, child)) is nn.Linear for child in (*block.columns, block.row))


def _own(module: nn.Module, child: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of a child that is a plain linear layer; of any other, none."""
    linear = module.get_submodule(child)
    if type(linear) is nn.Linear:
        yield from linear.named_parameters(recurse=False)


def _width(module: nn.Module, child: str, dim: int) -> int:
    linear = module.get_submodule(child)
    assert isinstance(linear, nn.Linear)
    return linear.weight.shape[dim]


def _records(model: nn.Module, covered: dict[int, _Lie], problems: list[tuple[str, str]]) -> Iterator[ParameterPlan]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for name, parameter in model.named_parameters():
        if id(parameter) not in covered:
            problems.append((name, f"no rule covers it ({_owner(model, name)})"))
            continue
        lie = covered[id(parameter)]
        tied = tuple(names[id(parameter)])
        if lie.dim is not None and len(tied) > 1:
            problems.append((name, f"it is cut and also tied to {', '.join(tied[1:])}, which may be used elsewhere"))
        rule = GradientRule.SAME if lie.dim is None else GradientRule.OWN
        yield ParameterPlan(tied, tuple(parameter.shape), lie.cut, lie.dim, rule, lie.unit, lie.blocks)


def _owner(model: nn.Module, name: str) -> str:
    module = model.get_submodule(name.rpartition(".")[0])
    return f"owned by a {type(module).__module__}.{type(module).__qualname__}"


def _check_block(name: str, module: nn.Module, block: _Block, tp_size: int) -> Iterator[tuple[str, str]]:
    for child in (*block.columns, block.row):
        linear = getattr(module, child)
        if type(linear) is not nn.Linear:
            yield _joined(name, child), f"it is a {type(linear).__qualname__}, and only a plain torch.nn.Linear is cut"
            return
    for child, counted in _counts(module, block).items():
        weight = getattr(module, child).weight
        actual = weight.shape[1] if child == block.row else weight.shape[0]
        if actual != sum(one.count * one.width for one in counted):
            expected = " + ".join(f"{one.count} {one.what} x {one.width}" for one in counted)
            yield _joined(name, f"{child}.weight"), f"its size {actual} is not {expected}"
        for one in dict.fromkeys(counted):
            if one.count % tp_size:
                yield _joined(name, f"{child}.weight"), f"its {one.count} {one.what} do not divide by {tp_size}"
    dropout = getattr(module, "attention_dropout", 0.0)
    if block.attention and dropout:
        yield (
            _joined(name, "attention_dropout"),
            f"it is {dropout}: dropout on cut heads needs other random numbers on each rank; set it to 0.0",
        )


@dataclass(frozen=True, slots=True)
class _Counted:
    """What a cut must not split: how many of it there are, and how wide each is."""

    what: str
    count: int
    width: int


def _heads(module: nn.Module) -> tuple[int, int, int]:
    """Return attention heads, key/value heads and the size of a head."""
    config: Any = module.config
    width: Any = module.head_dim
    return int(config.num_attention_heads), int(config.num_key_value_heads), int(width)


def _counts(module: nn.Module, block: _Block) -> dict[str, tuple[_Counted, ...]]:
    """Say what each layer's cut dimension consists of: one entry, or one for each fused block, in order."""
    if not block.attention:
        features = _Counted("intermediate features", _width(module, block.row, 1), 1)
        fused = 2 if block is _FUSED_MLP else 1
        return {**dict.fromkeys(block.columns, (features,) * fused), block.row: (features,)}
    heads, kv_heads, width = _heads(module)
    query, key = _Counted("attention heads", heads, width), _Counted("key/value heads", kv_heads, width)
    if block is _FUSED_ATTENTION:
        return {"qkv_proj": (query, key, key), "o_proj": (query,)}
    return {"q_proj": (query,), "k_proj": (key,), "v_proj": (key,), "o_proj": (query,)}


def _check_tensors(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield what would break under any cut: tensors that are not there, shared, or already in use."""
    holders: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            yield name, "it is on the meta device: materialise the weights before initialize"
            continue
        if parameter.grad is not None:
            yield name, "it already has a gradient: call model.zero_grad() before initialize"
        if parameter.numel():
            other = holders.setdefault(parameter.untyped_storage().data_ptr(), name)
            if other != name:
                yield name, f"it shares memory with {other} but is another Parameter: tie them by one Parameter"


def legal_sizes(model: nn.Module) -> list[int]:
    """Return the TP sizes that every cut layer of the model allows, ascending."""
    common = 0
    for module in model.modules():
        block = _BLOCKS.get(_type_of(module))
        if block is not None and _is_plain(module, block):
            common = math.gcd(common, *(one.count for counted in _counts(module, block).values() for one in counted))
    return [size for size in range(1, common + 1) if common % size == 0]


def _refusal(model: nn.Module, problems: list[tuple[str, str]], tp_size: int) -> PlanError:
    by_reason: dict[str, list[str]] = {}
    for name, reason in problems:
        by_reason.setdefault(reason, []).append(name)
    lines = [f"this model can't be cut over {tp_size} ranks:"]
    for reason, names in by_reason.items():
        lines.append(f"  {', '.join(names)}: {reason}")
    families = ", ".join(f"{family}ForCausalLM and {family}Model" for family in _FAMILIES)
    lines.append(f"  covered: {families} of transformers, unmodified")
    if any("do not divide" in reason for reason in by_reason):
        lines.append("  legal tp sizes for this model: " + ", ".join(map(str, legal_sizes(model))))
    return PlanError("\n".join(lines), (name for name, _ in problems))
