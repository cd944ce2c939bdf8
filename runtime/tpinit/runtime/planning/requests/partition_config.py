"""The requests of `partition_config` and `preset_model`: layer specs, matched by the rules of DeepSpeed 0.19.8.

A spec is matched against the full name of a parameter (`model.layers.0.mlp.up_proj.weight`), from its start; the first
spec that matches counts. Specs request which layers are sharded. Whether and how a layer can be sharded exactly depends
on the model: a requested layer that can't be stays replicated, and the plan has a note about it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from tpinit.reference.errors import ConfigError, Problem
from tpinit.reference.spellings import show
from tpinit.runtime.errors import PlanError
from tpinit.runtime.internals.torch_private import parameters_of
from tpinit.runtime.planning.analysis.linears import LinearInfo, expert_weights, find_experts, find_linears
from tpinit.runtime.planning.requests.layer_specs import Spec, SpecError, fused_parts, read_spec
from tpinit.runtime.planning.requests.presets import preset_specs
from tpinit.runtime.planning.requests.request import LayerRequest, PlanRequest

__all__ = ["from_partition_config", "request_from_section"]

_LOCATION = "tensor_parallel.partition_config"
_HEAD_NAMES = ("lm_head", "embed_out")
_MAX_LAYERS_IN_ERROR = 12


def request_from_section(section: Mapping[str, object], model: nn.Module, tp_size: int) -> PlanRequest | None:
    """Return what the `tensor_parallel` section requests for `model`; None if it has neither config nor preset.

    `section` is the section that the decision carries: checked, with absent keys left out. The specs of a
    `partition_config` come first; those of a `preset_model` apply to the parameters that they do not match, unless
    `use_default_specs` is false.

    Raises ConfigError if `partition_config.tp_size` is not `tp_size`, PlanError as `from_partition_config` does.
    """
    config, preset = section.get("partition_config"), section.get("preset_model")
    specs = preset_specs(preset) if isinstance(preset, str) else ()
    if not isinstance(config, Mapping) or not config:
        if not specs:
            return None
        names = [*find_linears(model), *find_experts(model)]
        return _match_layers(_Matching(model, names, specs, f"preset_model {preset}"))
    config_tp_size = config.get("tp_size")
    if isinstance(config_tp_size, int) and config_tp_size != tp_size:
        message = f"this differs from the TP size that was decided, {tp_size}"
        hint = "leave it out: it decides nothing"
        raise ConfigError([Problem(f"{_LOCATION}.tp_size", show(config_tp_size), message, hint)])
    defaults = specs if config.get("use_default_specs", True) else ()
    names = [*find_linears(model), *find_experts(model)]
    vocab_parallel_head = section.get("vocab_parallel_lm_head") is True
    defaults_name = f"preset_model {preset}" if defaults else ""
    return from_partition_config(config, model, names, defaults, defaults_name, vocab_parallel_head)


def from_partition_config(
    section: Mapping[str, Any],
    model: nn.Module,
    names: Sequence[str],
    defaults: Sequence[Spec] = (),
    defaults_name: str = "",
    vocab_parallel_head: bool = False,
) -> PlanRequest:
    """Return what a `partition_config` requests for `names`: the linear layers and expert modules of a model.

    `defaults` are the specs of a preset; they apply where no spec of the config matches. With `vocab_parallel_head` the
    output head is vocab-parallel: specs for it are ignored, and it needs none.

    Raises PlanError, with every problem at once: for a spec that does not fit a layer that it matches, for specs that
    shard no layer of this model, and in strict mode for a spec that matches nothing and a weight that no spec matches.
    """
    specs = [read_spec(entry, f"layer_specs[{index}]") for index, entry in enumerate(section.get("layer_specs", ()))]
    source = "partition_config" + (f" over {defaults_name}" if defaults_name else "")
    matching = _Matching(
        model,
        names,
        [*specs, *defaults],
        source,
        head_names=tuple(section.get("lm_head_patterns", _HEAD_NAMES)),
        vocab_parallel_head=vocab_parallel_head,
        strict=section.get("strict_mode", False),
        only_specs=not section.get("use_default_specs", True),
        embedding_dim=section.get("embedding_partition_dim"),
    )
    _report_specs(matching, specs)
    if "lm_head_patterns" in section:
        last_names = {_last_name(name) for name in names}
        missing = [name for name in section["lm_head_patterns"] if name not in last_names]
        if missing:
            matching.report(f"no layer of this model is named {', '.join(missing)} (lm_head_patterns)")
    return _match_layers(matching)


@dataclass(slots=True)
class _Matching:
    """The specs that are matched against one model, and the results so far.

    `head_names` are the last names of output heads. `only_specs` says that nothing is sharded but what a spec matches.
    `embedding_dim` is `embedding_partition_dim`, None if absent. `layers`, `replicated`, `reasons` and `notes` become
    those of the request; `problems` become one error.
    """

    model: nn.Module
    names: Sequence[str]
    specs: Sequence[Spec]
    source: str
    head_names: tuple[str, ...] = _HEAD_NAMES
    vocab_parallel_head: bool = False
    strict: bool = False
    only_specs: bool = False
    embedding_dim: int | None = None
    layers: dict[str, LayerRequest] = field(default_factory=dict)
    replicated: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    applicable: tuple[Spec, ...] = ()  # the specs that apply to models of this type

    def __post_init__(self) -> None:
        model_type = _model_type(self.model)
        self.applicable = tuple(spec for spec in self.specs if spec.applies_to(model_type))

    def report(self, text: str) -> None:
        """Add a problem in strict mode, else a note."""
        (self.problems if self.strict else self.notes).append(text)

    def spec_for(self, parameter: str) -> Spec | None:
        """Return the first spec that applies to a parameter."""
        return next((spec for spec in self.applicable if spec.matches(parameter)), None)

    def is_head(self, name: str) -> bool:
        """Return whether the last part of a module's name is that of an output head."""
        return _last_name(name) in self.head_names

    def skip(self, name: str, spec: Spec) -> None:
        """Replicate a module because a spec of type skip matches it."""
        self.replicated.add(name)
        self.reasons[name] = f"{spec.location} skips it"


def _last_name(name: str) -> str:
    return name.rpartition(".")[2]


def _model_type(model: nn.Module) -> str | None:
    """Return the type that `model_types` are compared with: the config's, else the start of the class name."""
    config_type = getattr(getattr(model, "config", None), "model_type", None)
    if config_type:
        return str(config_type).lower()
    for suffix in ("DecoderLayer", "Block", "Layer"):
        match = re.search(rf"(\w+){suffix}", str(type(model)))
        if match:
            return match.group(1).lower()
    return None


def _report_specs(matching: _Matching, specs: Sequence[Spec]) -> None:
    """Report the user's specs that have no effect, and keys that have no effect on a spec's layers."""
    parameters = [name for name, _ in matching.model.named_parameters(remove_duplicate=False)]
    first_spec = {name: matching.spec_for(name) for name in parameters}
    model_type = _model_type(matching.model)
    for spec in specs:
        if not spec.applies_to(model_type):
            types = ", ".join(spec.model_types)
            matching.notes.append(f"{spec.location} is for models of type {types}; this model has type {model_type}")
            continue
        matched = [name for name in parameters if spec.matches(name)]
        if not matched:
            matching.report(f"{spec.location} matches no parameter of this model: {', '.join(spec.patterns)}")
        elif all(first_spec[name] is not spec for name in matched):
            earlier = first_spec[matched[0]]
            assert earlier is not None
            matching.notes.append(f"{spec.location} has no effect: {earlier.location} matches its parameters first")
        if spec.grad_allreduce and spec.partition_type != "skip":
            matching.problems.append(
                f"{spec.location}: grad_allreduce is legal for partition_type skip only: each rank has the complete "
                "gradient of its slice, and an all-reduce would add gradients of different slices; leave it out"
            )
        if spec.gather_output and spec.partition_type != "column":
            matching.notes.append(
                f"{spec.location}: gather_output has no effect on a {spec.partition_type} layer, whose output is whole"
            )
        elif spec.grad_allreduce:
            matching.notes.append(
                f"{spec.location}: grad_allreduce has no effect: partial gradients are all-reduced wherever the data "
                "flow makes them partial, and only there"
            )


def _match_layers(matching: _Matching) -> PlanRequest:
    """Return the request of the specs for every layer. Raises PlanError with all problems."""
    linears, experts = find_linears(matching.model), find_experts(matching.model)
    matched_weights: set[int] = set()
    for name in matching.names:
        if name in linears:
            _match_linear(matching, name, linears[name], matched_weights)
        elif name in experts:
            _match_experts(matching, name)
    _match_embeddings(matching, matched_weights)
    _report_unmatched(matching, matched_weights, {*linears, *experts})
    if not matching.problems and not any(request.is_sharded for request in matching.layers.values()):
        parameters = (f"{name}.weight" if name in linears else name for name in matching.names)
        patterns = sorted({re.sub(r"\d+", "*", name) for name in parameters})
        matching.problems.append(
            f"it shards no layer of this model, whose layers are {_shortened(patterns)}; patterns are regular "
            "expressions that match the full name of a parameter from its start"
        )
    if matching.problems:
        lines = "".join(f"\n  {problem}" for problem in dict.fromkeys(matching.problems))
        raise PlanError(f"{matching.source} can't be followed:{lines}")
    return PlanRequest(
        matching.source,
        matching.layers,
        from_user=True,
        replicated=frozenset(matching.replicated),
        reasons=matching.reasons,
        notes=tuple(dict.fromkeys(matching.notes)),
    )


def _match_linear(matching: _Matching, name: str, linear: LinearInfo, matched_weights: set[int]) -> None:
    """Add the request of the first spec for a linear layer, and the id of its weight to `matched_weights`."""
    spec = matching.spec_for(f"{name}.weight")
    if spec is None:
        return
    head = matching.is_head(name)
    if head and matching.vocab_parallel_head:
        matching.notes.append(f"{name} is vocab-parallel (vocab_parallel_lm_head): {spec.location} has no effect on it")
        return
    if spec.partition_type == "skip":
        matching.skip(name, spec)
        return
    matched_weights.add(id(linear.module.weight))
    try:
        fused_sizes, unit = fused_parts(spec, linear)
    except SpecError as error:
        matching.problems.append(f"{spec.location} for {name}: {error}")
        return
    column = spec.partition_type == "column"
    # The input of an output head is replicated: a row-parallel head must split it.
    standalone = spec.gather_output if column else head
    if head and not column:
        matching.replicated.add(name)  # not vocab-parallel: the spec shards the head's input features
    matching.layers[name] = LayerRequest(
        column=column, row=not column, standalone=standalone, fused_sizes=fused_sizes, unit=unit
    )


def _match_experts(matching: _Matching, name: str) -> None:
    """Request that a block of experts is sharded if specs match all tensors that hold the experts."""
    weights = expert_weights(matching.model.get_submodule(name))
    specs = [spec for weight in weights if (spec := matching.spec_for(f"{name}.{weight}")) is not None]
    skips = [spec for spec in specs if spec.partition_type == "skip"]
    if skips:
        matching.skip(name, skips[0])
    elif len(specs) == len(weights):
        matching.layers[name] = LayerRequest(experts=True)
        matching.notes += [
            f"{spec.location}: shape and partition_dim have no effect on {name}: a dry run finds how it is fused"
            for spec in specs
            if spec.shape is not None or spec.partition_dim is not None
        ]
    elif specs:
        matching.reasons[name] = (
            f"{specs[0].location} matches only some of its tensors, which are sharded together or not at all"
        )


def _match_embeddings(matching: _Matching, matched_weights: set[int]) -> None:
    """Note which embeddings the specs match, and add the ids of their weights to `matched_weights`."""
    if matching.embedding_dim is not None and matching.embedding_dim > 1:
        matching.problems.append(
            f"embedding_partition_dim = {matching.embedding_dim}: an embedding has dimensions 0 and 1"
        )
    for name, module in matching.model.named_modules():
        spec = matching.spec_for(f"{name}.weight") if isinstance(module, nn.Embedding) else None
        if spec is None:
            continue
        if spec.partition_type == "skip":
            matching.skip(name, spec)
            continue
        matched_weights.add(id(module.weight))
        if matching.embedding_dim != 0:
            matching.notes.append(
                f"{spec.location} matches the embedding {name}, which is vocab-parallel (dimension 0) or replicated, "
                "whatever the spec's partition_type"
            )


def _report_unmatched(matching: _Matching, matched_weights: set[int], shardable: Collection[str]) -> None:
    """Report the weights that no spec matches, and replicate them with `only_specs`."""
    for name, module in _weight_modules(matching.model):
        tied_to_matched = id(parameters_of(module).get("weight")) in matched_weights
        is_embedding = isinstance(module, nn.Embedding)
        weight = "weight" if "weight" in parameters_of(module) else expert_weights(module)[0]
        parameter = f"{name}.{weight}"
        if tied_to_matched or matching.spec_for(parameter) is not None:
            continue
        by_option = matching.is_head(name) and matching.vocab_parallel_head  # sharded without a spec
        if matching.only_specs and matching.embedding_dim != 0 and not by_option:
            matching.replicated.add(name)
        if not (is_embedding or matching.is_head(name)) or name in matching.replicated:
            matching.reasons.setdefault(name, f"no spec of {matching.source} matches it")
        if matching.strict and not is_embedding and not by_option:
            kind = "layer" if name in shardable else "weight"
            matching.problems.append(f"no spec matches the {kind} {parameter} (strict_mode)")


def _weight_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a spec could match: those with a `weight` of two dimensions, and expert modules."""
    experts = find_experts(model)
    for name, module in model.named_modules():
        weight = parameters_of(module).get("weight")
        if (weight is not None and weight.dim() == 2) or name in experts:
            yield name, module


def _shortened(items: Sequence[str]) -> str:
    more = f" and {len(items) - _MAX_LAYERS_IN_ERROR} more" if len(items) > _MAX_LAYERS_IN_ERROR else ""
    return ", ".join(items[:_MAX_LAYERS_IN_ERROR]) + more
