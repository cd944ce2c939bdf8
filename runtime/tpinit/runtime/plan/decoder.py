"""The plan of a transformers decoder: Llama, Qwen2, Mistral, their causal language models and base models.

A model is recognised by the exact types of its modules. Whatever owns a parameter and is not known here is
refused by name: a subclass may compute something else, and a plan that guesses is silently wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.plan.records import Cut, GradientRule, ParameterPlan, Plan, RegionPlan

__all__ = ["plan_model"]

_FAMILIES = ("Llama", "Qwen2", "Mistral")


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


_ATTENTION = _Block("hidden_states", ("q_proj", "k_proj", "v_proj"), "o_proj", attention=True)
_MLP = _Block("x", ("gate_proj", "up_proj"), "down_proj", attention=False)


def _home(family: str) -> str:
    return f"transformers.models.{family.lower()}.modeling_{family.lower()}"


_BLOCKS = {
    (_home(family), f"{family}{kind}"): block
    for family in _FAMILIES
    for kind, block in (("Attention", _ATTENTION), ("MLP", _MLP))
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
                regions.append(_region(name, block))
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


def _region(name: str, block: _Block) -> RegionPlan:
    columns = tuple(_joined(name, child) for child in block.columns)
    return RegionPlan(name, block.argument, columns, _joined(name, block.row))


def _cuts(module: nn.Module, block: _Block | None) -> Iterator[tuple[nn.Parameter, _Lie]]:
    """Yield every parameter that this module's type explains, and how it lies over the group."""
    kind = _type_of(module)
    if block is not None:
        unit = int(module.head_dim) if block.attention else 1  # type: ignore[arg-type]  # torch types attributes as Tensor
        for child in block.columns:
            for _, parameter in _own(module, child):
                yield parameter, _Lie(Cut.COLUMN, 0, unit)
        for name, parameter in _own(module, block.row):
            # The bias of a row layer is added once, after the sum, so every rank holds all of it.
            yield parameter, _Lie(Cut.ROW, 1, unit) if name == "weight" else _Lie()
    elif kind in _REPLICATED:
        yield from ((parameter, _Lie()) for parameter in module.parameters(recurse=False))
    elif kind in _HEADED:
        yield from ((parameter, _Lie()) for _, parameter in _own(module, "lm_head"))


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
        yield ParameterPlan(tied, tuple(parameter.shape), lie.cut, lie.dim, rule, lie.unit)


def _owner(model: nn.Module, name: str) -> str:
    module = model.get_submodule(name.rpartition(".")[0])
    return f"owned by a {type(module).__module__}.{type(module).__qualname__}"


def _check_block(name: str, module: nn.Module, block: _Block, tp_size: int) -> Iterator[tuple[str, str]]:
    for child in (*block.columns, block.row):
        linear = getattr(module, child)
        if type(linear) is not nn.Linear:
            yield _joined(name, child), f"it is a {type(linear).__qualname__}, and only a plain torch.nn.Linear is cut"
            return
    counts = _counts(module, block)
    for child, what, count, width in counts:
        weight = getattr(module, child).weight
        actual = weight.shape[1] if child == block.row else weight.shape[0]
        if actual != count * width:
            yield _joined(name, f"{child}.weight"), f"its size {actual} is not {count} {what} x {width}"
        elif count % tp_size:
            yield _joined(name, f"{child}.weight"), f"its {count} {what} do not divide by {tp_size}"
    dropout = getattr(module, "attention_dropout", 0.0)
    if block.attention and dropout:
        yield (
            _joined(name, "attention_dropout"),
            f"it is {dropout}: dropout on cut heads needs other random numbers on each rank; set it to 0.0",
        )


def _counts(module: nn.Module, block: _Block) -> list[tuple[str, str, int, int]]:
    """Return (child, what is counted, how many, how wide) for each layer: what a cut must not split."""
    if not block.attention:
        size = _width(module, "gate_proj", 0)
        return [(child, "intermediate features", size, 1) for child in ("gate_proj", "up_proj", "down_proj")]
    config, width = module.config, int(module.head_dim)  # type: ignore[arg-type]  # torch types attributes as Tensor
    heads, kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)  # type: ignore[union-attr, arg-type]  # same
    return [
        ("q_proj", "attention heads", heads, width),
        ("k_proj", "key/value heads", kv_heads, width),
        ("v_proj", "key/value heads", kv_heads, width),
        ("o_proj", "attention heads", heads, width),
    ]


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
        if block is not None and all(type(getattr(module, c)) is nn.Linear for c in (*block.columns, block.row)):
            common = math.gcd(common, *(count for _, _, count, _ in _counts(module, block)))
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
