"""`partition_config` and `preset_model`: layer specs, matched against a model by DeepSpeed's rules (0.19.8).

A spec is matched against the full name of a parameter (`model.layers.0.mlp.up_proj.weight`), at its start; the
first that matches counts. Specs say which layers are cut. Whether and how they can be, the model says: what is
wished and can't be exact stays whole, with a note.
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
from tpinit.runtime.planning.analysis.linears import LinearInfo, expert_weights, find_experts, find_linears
from tpinit.runtime.planning.requests.layer_specs import Spec, SpecError, fused_parts, read_spec
from tpinit.runtime.planning.requests.presets import preset_specs
from tpinit.runtime.planning.requests.request import LayerRequest, PlanRequest

__all__ = ["from_partition_config", "request_from_section"]

_PLACE = "tensor_parallel.partition_config"
_HEADS = ("lm_head", "embed_out")
_SHOWN = 5


def request_from_section(section: Mapping[str, object], model: nn.Module, tp_size: int) -> PlanRequest | None:
    """Return what the `tensor_parallel` section request for `model`; None where it leaves that to the model.

    `section` is what the decision carries: checked, with absent keys left out. A `partition_config` goes before a
    `preset_model`, which supplies what no spec of its matches unless `use_default_specs` is false.

    Raises ConfigError and PlanError as `from_partition_config` does.
    """
    config, preset = section.get("partition_config"), section.get("preset_model")
    specs = preset_specs(preset) if isinstance(preset, str) else ()
    if not isinstance(config, Mapping) or not config:
        if not specs:
            return None
        names = [*find_linears(model), *find_experts(model)]
        return _follow(_Reading(model, names, specs, f"preset_model {preset}"))
    repeated = config.get("tp_size")
    if isinstance(repeated, int) and repeated != tp_size:
        message = f"this differs from the TP size that was decided, {tp_size}"
        raise ConfigError([Problem(f"{_PLACE}.tp_size", show(repeated), message, "leave it out: it decides nothing")])
    defaults = specs if config.get("use_default_specs", True) else ()
    names = [*find_linears(model), *find_experts(model)]
    head = section.get("vocab_parallel_lm_head") is True
    return from_partition_config(config, model, names, defaults, f"preset_model {preset}" if defaults else "", head)


def from_partition_config(
    section: Mapping[str, Any],
    model: nn.Module,
    names: Sequence[str],
    defaults: Sequence[Spec] = (),
    defaults_name: str = "",
    cut_head: bool = False,
) -> PlanRequest:
    """Return what a `partition_config` request for the matrices and blocks of experts `names` of a model.

    `defaults` are the specs of a preset, for what no spec of the config matches. With `cut_head` the output head
    is cut by vocabulary whatever the specs say, and needs none.

    Raises PlanError, with everything at once, for a spec that can't be meant for a layer it matches, for specs
    that cut nothing of this model, and in strict mode for a spec that matches nothing and a weight that none
    matches.
    """
    written = [read_spec(one, f"layer_specs[{place}]") for place, one in enumerate(section.get("layer_specs", ()))]
    source = "partition_config" + (f" over {defaults_name}" if defaults_name else "")
    reading = _Reading(
        model,
        names,
        [*written, *defaults],
        source,
        heads=tuple(section.get("lm_head_patterns", _HEADS)),
        cut_head=cut_head,
        strict=section.get("strict_mode", False),
        only_these=not section.get("use_default_specs", True),
        by_vocabulary=section.get("embedding_partition_dim"),
    )
    _report_specs(reading, written)
    if "lm_head_patterns" in section:
        ends = {name.rpartition(".")[2] for name in names}
        lost = [one for one in section["lm_head_patterns"] if one not in ends]
        if lost:
            reading.complain(f"no layer of this model is named {', '.join(lost)} (lm_head_patterns)")
    return _follow(reading)


@dataclass(slots=True)
class _Reading:
    """Specs, the model that they are matched against, and what comes of it."""

    model: nn.Module
    names: Sequence[str]
    specs: Sequence[Spec]
    source: str
    heads: tuple[str, ...] = _HEADS
    cut_head: bool = False
    strict: bool = False
    only_these: bool = False
    by_vocabulary: int | None = None
    styles: dict[str, LayerRequest] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    why: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    own: tuple[Spec, ...] = ()  # those that are for models of this type

    def __post_init__(self) -> None:
        kind = _model_type(self.model)
        self.own = tuple(one for one in self.specs if one.is_for(kind))

    def complain(self, text: str) -> None:
        """Take down what strict mode refuses, and another only notes."""
        (self.problems if self.strict else self.notes).append(text)

    def spec_for(self, parameter: str) -> Spec | None:
        """Return the first spec that is for a parameter."""
        return next((one for one in self.own if one.matches(parameter)), None)

    def is_head(self, name: str) -> bool:
        """Tell whether a layer goes by the name of an output head: the last part of its own."""
        return name.rpartition(".")[2] in self.heads


def _model_type(model: nn.Module) -> str | None:
    """Return the type that `model_types` are compared with: the config's, else what the class's name begins with."""
    of_config = getattr(getattr(model, "config", None), "model_type", None)
    if of_config:
        return str(of_config).lower()
    for ending in ("DecoderLayer", "Block", "Layer"):
        found = re.search(rf"(\w+){ending}", str(type(model)))
        if found:
            return found.group(1).lower()
    return None


def _report_specs(reading: _Reading, written: Sequence[Spec]) -> None:
    """Report specs of the user's that match nothing, or nothing that an earlier one has not taken."""
    parameters = [name for name, _ in reading.model.named_parameters(remove_duplicate=False)]
    taken = {name: reading.spec_for(name) for name in parameters}
    kind = _model_type(reading.model)
    for spec in written:
        if not spec.is_for(kind):
            reading.notes.append(f"{spec.place} is for {', '.join(spec.model_types)}, and this model is of type {kind}")
            continue
        matched = [name for name in parameters if spec.matches(name)]
        if not matched:
            patterns = ", ".join(spec.patterns)
            reading.complain(f"{spec.place} matches no parameter of this model: {patterns}")
        elif all(taken[name] is not spec for name in matched):
            first = taken[matched[0]]
            assert first is not None
            reading.notes.append(f"{spec.place} matches only what {first.place} takes first")
        if spec.sums_gradients and spec.cut != "skip":
            reading.problems.append(
                f"{spec.place}: grad_allreduce is for skip: a part's gradient is complete, and a sum would mix parts"
            )
        if spec.gather and spec.cut != "column":
            reading.notes.append(
                f"{spec.place}: gather_output says nothing of a {spec.cut} layer, whose output is whole"
            )
        elif spec.sums_gradients:
            reading.notes.append(f"{spec.place}: grad_allreduce is done where the data flow needs it, and only there")


def _follow(reading: _Reading) -> PlanRequest:
    """Give every layer the style of its spec, and report what has none. Raises PlanError with all problems."""
    matrices, experts = find_linears(reading.model), find_experts(reading.model)
    matched: set[int] = set()
    for name in reading.names:
        if name in matrices:
            _follow_matrix(reading, name, matrices[name], matched)
        elif name in experts:
            _follow_experts(reading, name)
    _follow_embeddings(reading, matched)
    _report_unmatched(reading, matched, {*matrices, *experts})
    if not reading.problems and not any(style.is_sharded for style in reading.styles.values()):
        layers = sorted({re.sub(r"\d+", "*", f"{name}.weight" if name in matrices else name) for name in reading.names})
        reading.problems.append(
            f"it cuts no layer of this model, whose layers are {_some(layers, 12)}; patterns are regular expressions "
            "for the full name of a parameter"
        )
    if reading.problems:
        lines = "".join(f"\n  {one}" for one in dict.fromkeys(reading.problems))
        raise PlanError(f"{reading.source} can't be followed:{lines}")
    return PlanRequest(
        reading.source,
        reading.styles,
        from_user=True,
        replicated=frozenset(reading.kept),
        reasons=reading.why,
        notes=tuple(dict.fromkeys(reading.notes)),
    )


def _follow_matrix(reading: _Reading, name: str, matrix: LinearInfo, matched: set[int]) -> None:
    spec = reading.spec_for(f"{name}.weight")
    if spec is None:
        return
    head = reading.is_head(name)
    if head and reading.cut_head:
        reading.notes.append(f"{name} is cut by vocabulary (vocab_parallel_lm_head), whatever {spec.place} says")
        return
    if spec.cut == "skip":
        reading.kept.add(name)
        reading.why[name] = f"{spec.place} keeps it whole"
        return
    matched.add(id(matrix.module.weight))
    try:
        blocks, unit = fused_parts(spec, matrix)
    except SpecError as error:
        reading.problems.append(f"{spec.place} for {name}: {error}")
        return
    column = spec.cut == "column"
    # A row at the end of the model has a whole input: it is split.
    whole = spec.gather if column else head
    if head and not column:
        reading.kept.add(name)
    reading.styles[name] = LayerRequest(column=column, row=not column, standalone=whole, blocks=blocks, unit=unit)


def _follow_experts(reading: _Reading, name: str) -> None:
    """Experts are cut where all tensors that hold them are meant to be."""
    weights = expert_weights(reading.model.get_submodule(name))
    specs = [reading.spec_for(f"{name}.{one}") for one in weights]
    found = [one for one in specs if one is not None]
    if any(one.cut == "skip" for one in found):
        reading.kept.add(name)
        reading.why[name] = f"{found[0].place} keeps it whole"
    elif len(found) == len(weights):
        reading.styles[name] = LayerRequest(experts=True)
        reading.notes += [
            f"{one.place}: how {name} is fused is found by running it; shape and partition_dim say nothing of it"
            for one in found
            if one.shape is not None or one.dim is not None
        ]
    elif found:
        reading.why[name] = f"{found[0].place} matches one of its tensors, and they are cut together"


def _follow_embeddings(reading: _Reading, matched: set[int]) -> None:
    if reading.by_vocabulary is not None and reading.by_vocabulary > 1:
        reading.problems.append(
            f"embedding_partition_dim = {reading.by_vocabulary}: an embedding has dimensions 0 and 1"
        )
    for name, module in reading.model.named_modules():
        spec = reading.spec_for(f"{name}.weight") if isinstance(module, nn.Embedding) else None
        if spec is None:
            continue
        if spec.cut == "skip":
            reading.kept.add(name)
            reading.why[name] = f"{spec.place} keeps it whole"
            continue
        matched.add(id(module.weight))
        if reading.by_vocabulary != 0:
            reading.notes.append(f"{name} is cut by vocabulary (dimension 0), if at all: {spec.place}")


def _report_unmatched(reading: _Reading, matched: set[int], cuttable: Collection[str]) -> None:
    """Report weights that no spec matches, and keep them whole where nothing but the specs shall cut."""
    for name, module in _weights(reading.model):
        tied = id(module._parameters.get("weight")) in matched
        embedding = isinstance(module, nn.Embedding)
        weights = ["weight"] if "weight" in module._parameters else expert_weights(module)
        parameters = [f"{name}.{one}" for one in weights[:1]]
        if tied or any(reading.spec_for(one) is not None for one in parameters):
            continue
        vocabulary = embedding or reading.is_head(name)
        if reading.only_these and reading.by_vocabulary != 0 and not (reading.is_head(name) and reading.cut_head):
            reading.kept.add(name)
        if not vocabulary or name in reading.kept:
            reading.why.setdefault(name, f"no spec of {reading.source} matches it")
        if reading.strict and not embedding and not (reading.is_head(name) and reading.cut_head):
            kind = "layer" if name in cuttable else "weight"
            reading.problems.append(f"no spec matches the {kind} {parameters[0]} (strict_mode)")


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a spec could be for: with a weight of two dimensions, or blocks of experts."""
    experts = find_experts(model)
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if (weight is not None and weight.dim() == 2) or name in experts:
            yield name, module


def _some(items: Sequence[str], count: int = _SHOWN) -> str:
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more
