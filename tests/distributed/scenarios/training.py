"""What the ranks of a test world do. Each function runs on every rank and returns plain data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import init_device_mesh
from torch.nn import functional
from tpinit.runtime import initialize, tp_model_init
from tpinit.runtime.groups import agreement
from tpinit.runtime.groups.digest import digest_model
from tpinit.runtime.parallel import reduce_from_tp_region
from tpinit.runtime.slicing import assemble
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    Phi3Config,
    Phi3ForCausalLM,
    Phi3Model,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
)

from support.collectives import CollectiveCounter

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, LlamaModel),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, Qwen2Model),
    "mistral": (MistralConfig, MistralForCausalLM, MistralModel),
    "phi3": (Phi3Config, Phi3ForCausalLM, Phi3Model),
}
LAYERS = 2
VOCABULARY = 64
LENGTH = 12


def build(family: str = "llama", base: bool = False, seed: int = 0, **options: Any) -> nn.Module:
    """Return a tiny model with the same random weights in every process."""
    config_class, causal, plain = FAMILIES[family]
    settings: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "attn_implementation": "eager",
        "use_cache": False,
        "pad_token_id": None,
        "initializer_range": 0.06,
        **options,
    }
    torch.manual_seed(seed)
    model = (plain if base else causal)(config_class(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.train()


class Mpu:
    """An mpu with DeepSpeed's six methods over given groups; without `dp`, with the three of the model side."""

    def __init__(self, tp: Any, dp: Any = None) -> None:
        self.get_model_parallel_group = lambda: tp
        self.get_model_parallel_rank = lambda: dist.get_rank(tp)
        self.get_model_parallel_world_size = lambda: dist.get_world_size(tp)
        if dp is not None:
            self.get_data_parallel_group = lambda: dp
            self.get_data_parallel_rank = lambda: dist.get_rank(dp)
            self.get_data_parallel_world_size = lambda: dist.get_world_size(dp)


class MegatronMpu:
    """Megatron's names, as its parallel_state module has them."""

    def __init__(self, tp: Any, dp: Any) -> None:
        self.get_tensor_model_parallel_group = lambda: tp
        self.get_data_parallel_group = lambda: dp


def my_group(groups: list[list[int]], rank: int) -> Any:
    """Make all groups on every rank and return this rank's own."""
    made = [(ranks, dist.new_group(ranks)) for ranks in groups]
    return next((group for ranks, group in made if rank in ranks), dist.GroupMember.NON_GROUP_MEMBER)


def pair(tp: int, rank: int, strided: bool) -> tuple[list[list[int]], list[list[int]]]:
    """Return the TP and DP groups of the world: TP neighbours, or TP by stride."""
    world = dist.get_world_size()
    runs = [list(range(first, first + tp)) for first in range(0, world, tp)]
    strides = [list(range(first, world, world // tp)) for first in range(world // tp)]
    if strided:
        return strides, [list(ranks) for ranks in zip(*strides, strict=True)]
    return runs, [list(ranks) for ranks in zip(*runs, strict=True)]


def source_arguments(source: str, model: nn.Module, tp: int, rank: int, config: dict[str, Any]) -> dict[str, Any]:
    """Return what to pass to `initialize` so that the TP group comes from `source`; may call tp_model_init."""
    strided = source.endswith("strided")
    kind = source.removesuffix("-strided")
    tp_groups, dp_groups = pair(tp, rank, strided)
    section = {"autotp_size": tp}
    if kind == "created":
        return {"config": {**config, "tensor_parallel": section}}
    if kind == "created-from-call":
        tp_model_init(model, tp, "fp32")
        return {"config": {**config, "tensor_parallel": {}}}
    if kind == "mpu":
        mpu = Mpu(my_group(tp_groups, rank), my_group(dp_groups, rank))
        return {"config": {**config, "tensor_parallel": section}, "mpu": mpu}
    if kind == "mpu-without-dp":
        return {"config": {**config, "tensor_parallel": section}, "mpu": Mpu(my_group(tp_groups, rank))}
    if kind == "megatron-call":
        tp_model_init(model, tp, torch.float32)
        return {"config": config, "mpu": MegatronMpu(my_group(tp_groups, rank), my_group(dp_groups, rank))}
    if kind == "call-group":
        tp_model_init(model, tp, torch.float32, tp_group=my_group(tp_groups, rank))
        return {"config": config}
    if kind == "call-group-and-section":
        tp_model_init(model, tp, torch.float32, tp_group=my_group(tp_groups, rank))
        return {"config": {**config, "tensor_parallel": section}}
    if kind == "call-and-mpu-and-section":
        tp_model_init(model, tp, torch.float32)
        mpu = Mpu(my_group(tp_groups, rank), my_group(dp_groups, rank))
        return {"config": {**config, "tensor_parallel": {}}, "mpu": mpu}
    if kind == "config-group":
        inside = {**section, "tp": {"tp_group": my_group(tp_groups, rank)}}
        return {"config": {**config, "tensor_parallel": inside}}
    if kind == "mesh":
        world = dist.get_world_size()
        shape, names = ((tp, world // tp), ("tensor_parallel", "dp")) if strided else ((world // tp, tp), ("dp", "tp"))
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        return {"config": {**config, "tensor_parallel": section}, "mesh_param": mesh}
    if kind == "row2":
        return {"config": config, "mpu": Mpu(my_group(tp_groups, rank), my_group(dp_groups, rank))}
    raise AssertionError(source)


def whole(local: torch.Tensor, record: Any, engine: Any) -> torch.Tensor:
    """Put a cut tensor together again, from the plan and nothing else."""
    side = engine.groups.tp
    if record.dim is None or side.group is None:
        return local.detach().clone()
    parts = [torch.empty(record.local_shape(side.size, place), dtype=local.dtype) for place in range(side.size)]
    dist.all_gather(parts, local.detach().contiguous(), group=side.group)
    return assemble(parts, record)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the relative distance of two tensors in the 2-norm."""
    return float((one - other).norm() / other.norm().clamp(min=1e-30))


def make_optimizer(kind: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """Return, by hand, the torch optimizer that a config means: the reference does not use the runtime's."""
    params = dict(kind["params"])
    if kind["type"] == "SGD":
        return torch.optim.SGD(model.parameters(), **params)
    params.setdefault("weight_decay", 0.0)
    return torch.optim.AdamW(model.parameters(), **params)


OPTIMIZERS = {
    "sgd": {"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9}},
    "adamw": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-6, "weight_decay": 0.1}},
    "adam": {"type": "Adam", "params": {"lr": 1e-3, "eps": 1e-6}},
}


def compare(
    rank: int,
    family: str = "llama",
    tp: int = 2,
    source: str = "created",
    optimizer: str = "adamw",
    clipping: float = 0.0,
    accumulation: int = 1,
    steps: int = 5,
    break_with: str = "",
    base: bool = False,
    checkpointing: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train sharded and unsharded on the same data and return how far they are apart, and what was sent."""
    model = build(family, base, **options)
    reference = copy.deepcopy(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clipping,
        "optimizer": OPTIMIZERS[optimizer],
    }
    engine, _, _, _ = initialize(model=model, **source_arguments(source, model, tp, rank, config))
    sabotage(break_with, engine)
    parts, mine = dist.get_world_size() // engine.groups.tp.size, engine.groups.data_index
    if source.startswith("row2"):
        parts = engine.groups.dp.size
    optimizer_of_reference = make_optimizer(OPTIMIZERS[optimizer], reference)
    worst = {"loss": 0.0, "gradient": 0.0, "norm": 0.0, "weight": 0.0}
    counter = CollectiveCounter()
    losses = []
    for step in range(steps):
        batch = torch.randint(
            0, VOCABULARY, (parts * accumulation, 2, LENGTH), generator=torch.Generator().manual_seed(step)
        )
        total = torch.zeros(())
        for micro in range(accumulation):
            ids = batch[mine * accumulation + micro]
            with counter.on():
                loss = loss_of(engine, ids, base)
                engine.backward(loss)
            total += loss.detach() / accumulation
            if micro < accumulation - 1:
                engine.step()
        dist.all_reduce(total)
        total /= dist.get_world_size()
        expected = loss_of(reference, batch.reshape(-1, LENGTH), base)
        expected.backward()
        worst["loss"] = max(worst["loss"], distance(total, expected.detach()))
        losses.append(float(expected))
        for kind, apart in differences(engine, reference, "grad").items():
            worst["gradient"] = max(worst["gradient"], apart)
            if apart > 1e-5:
                worst.setdefault("where", kind)  # type: ignore[arg-type]  # a name among numbers
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), clipping or float("inf"))
        engine.step()
        worst["norm"] = max(worst["norm"], abs(engine.get_global_grad_norm() / float(norm) - 1))
        optimizer_of_reference.step()
        optimizer_of_reference.zero_grad()
        worst["weight"] = max(worst["weight"], *differences(engine, reference, "data").values())
    return {
        **worst,
        "losses": losses,
        "row": engine.decision.row,
        "tp_ranks": engine.groups.tp.ranks,
        "dp_ranks": engine.groups.dp.ranks,
        "calls": counter.calls,
        "steps": engine.global_steps,
        "tied": len(engine.plan.parameters) < len(list(engine.module.named_parameters(remove_duplicate=False))),
        "cut": sum(record.dim is not None for record in engine.plan.parameters),
    }


def loss_of(model: Any, ids: torch.Tensor, base: bool) -> torch.Tensor:
    if base:
        hidden = model(input_ids=ids).last_hidden_state
        # Not the hidden state's own square: behind a norm that is constant, and its gradient mere noise.
        weights = torch.randn(hidden.shape[1:], generator=torch.Generator().manual_seed(1))
        return (hidden * weights).sum((1, 2)).mean()
    return model(input_ids=ids, labels=ids).loss


def differences(engine: Any, reference: nn.Module, what: str) -> dict[str, float]:
    expected = dict(reference.named_parameters())
    actual = dict(engine.module.named_parameters())
    return {
        record.name: distance(
            whole(getattr(actual[record.name], what), record, engine), getattr(expected[record.name], what)
        )
        for record in engine.plan.parameters
    }


def sabotage(how: str, engine: Any) -> None:
    """Negative controls: break the run in a way that the comparison must see."""
    if how == "no-input-gradient-sum":
        # Without the entry, each rank keeps its own part of the input's gradient.
        attention = engine.module.model.layers[1].self_attn
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
            layer.tp_fused = layer.tp_region_input = None
    elif how == "averages-over-tp":
        engine.groups = replace(engine.groups, dp=engine.groups.tp)
    elif how == "counts-replicated-per-rank":
        for state in engine._param_states:
            if state.record.dim is None:
                state.record = replace(state.record, dim=0)
    elif how == "bias-per-rank":

        def forward(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
            return lambda x: reduce_from_tp_region(
                functional.linear(x, layer.weight, layer.bias), layer.tp_region_output.group
            )

        for layer in engine.module.model.layers:
            layer.self_attn.o_proj.forward = forward(layer.self_attn.o_proj)
    else:
        assert not how, how


# --- what is refused ---------------------------------------------------------------------------------


def outcome(call: Callable[[], Any]) -> dict[str, Any]:
    """Return the error that a call raises, or that it raised none."""
    try:
        call()
    except Exception as error:
        codes = [violation.code.value for violation in error.decision.violations] if hasattr(error, "decision") else []
        fields = list(getattr(error, "fields", ()))
        return {"type": type(error).__name__, "text": str(error), "codes": codes, "fields": fields}
    return {"type": None, "text": "", "codes": [], "fields": []}


def row(rank: int, number: int) -> dict[str, Any]:
    """Initialise by a row of the table with fitting inputs, and return what came of it."""
    model = build()
    world = dist.get_world_size()
    whole_world = list(range(world))
    tp_groups, dp_groups = [whole_world], [[one] for one in whole_world]
    tpi, tpg, cfg, mpu = number >= 5, number >= 9, (number - 1) % 4 >= 2, (number - 1) % 2 == 1
    if tpi:
        tp_model_init(model, world, "bf16", **({"tp_group": my_group(tp_groups, rank)} if tpg else {}))
    config: dict[str, Any] = {"optimizer": OPTIMIZERS["sgd"], "train_micro_batch_size_per_gpu": 1}
    if cfg:
        config["tensor_parallel"] = {"autotp_size": world, "dtype": "bf16"}
    given = {"mpu": Mpu(my_group(tp_groups, rank), my_group(dp_groups, rank))} if mpu else {}
    result: dict[str, Any] = {}

    def call() -> None:
        engine, _, _, _ = initialize(model=model, config=config, **given)
        weights = dict(engine.module.named_parameters())
        result.update(
            row=engine.decision.row,
            outcome=engine.decision.outcome.value,
            source=engine.decision.tp_group.source and engine.decision.tp_group.source.value,
            dtypes=sorted({str(one.dtype) for one in weights.values()}),
            shape=tuple(weights["model.layers.0.self_attn.q_proj.weight"].shape),
        )
        ids = torch.randint(0, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
        result["steps"] = engine.global_steps

    result["error"] = outcome(call)
    result["untouched"] = tuple(model.get_parameter("model.layers.0.self_attn.q_proj.weight").shape) == (32, 32)
    return result


def refused(rank: int, case: str) -> dict[str, Any]:
    """Initialise with inputs that must be refused; return the error, and whether the model was left alone."""
    world = dist.get_world_size()
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": OPTIMIZERS["sgd"],
        "tensor_parallel": {"autotp_size": world},
    }
    arguments: dict[str, Any] = {}
    model: Any = build()
    odd = rank == world - 1  # the rank that is given something else, where a case is about that
    section = config["tensor_parallel"]
    match case:
        # Ranks that differ.
        case "other learning rate":
            if odd:
                config["optimizer"] = {"type": "SGD", "params": {"lr": 0.5, "momentum": 0.9}}
        case "other size":
            if odd:
                section["autotp_size"] = 1
        case "other dtype":
            if odd:
                section["dtype"] = "bf16"
        case "no section":
            if odd:
                del config["tensor_parallel"]
        case "one call less":
            if not odd:
                tp_model_init(model, world, "fp32")
        case "malformed on one rank":
            if odd:
                section["autotp_size"] = "2"
        case "missing file on one rank":
            if odd:
                config = "/nonexistent/ds.json"  # type: ignore[assignment]  # a path in place of a dict
        case "other shape":
            if odd:
                model = build(intermediate_size=64)
        case "other weights":
            model = build(seed=rank)
        case "frozen on one rank":
            if odd:
                model.model.embed_tokens.weight.requires_grad_(False)
        case "other model class":
            if odd:
                model = nn.Linear(4, 4)
        case "no model on one rank":
            if odd:
                model = None
        case "other views of the groups":
            groups = [[0, 1], [2, 3], [0, 2], [1, 3]]
            made = [dist.new_group(ranks) for ranks in groups]
            mine = {0: 0, 1: 0, 2: 2, 3: 1}[rank]
            section["autotp_size"] = 2
            arguments["mpu"] = Mpu(made[mine])
        # Groups that can't carry a run.
        case "group that leaves ranks out":
            section["autotp_size"] = 2
            tp_model_init(model, 2, "fp32", tp_group=my_group([[0, 1]], rank))
        case "mpu that does not cross once":
            section["autotp_size"] = 2
            pairs = my_group([[0, 1], [2, 3]], rank)
            arguments["mpu"] = Mpu(pairs, my_group([[0, 1], [2, 3]], rank))
        case "row 2 without a data-parallel group":
            del config["tensor_parallel"]
            arguments["mpu"] = Mpu(my_group([list(range(world))], rank))
        case "mesh tuple":
            arguments["mesh_param"] = (1, world)
        case "mesh without tp":
            arguments["mesh_param"] = init_device_mesh("cpu", (1, world), mesh_dim_names=("dp", "sp"))
        case "mesh with another dimension":
            section["autotp_size"] = world // 2
            arguments["mesh_param"] = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("pp", "tp"))
        # Models.
        case "unknown model":
            model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        case "nothing to cut":
            model = build(num_attention_heads=1, num_key_value_heads=1, intermediate_size=3)
        case "forward that can't be run":
            model.model.forward = lambda input_ids, inputs_embeds: input_ids
        case "stale gradient":
            model.lm_head.weight.grad = torch.zeros_like(model.lm_head.weight)
        case "meta":
            with torch.device("meta"):
                model = LlamaForCausalLM(model.config)
        # Configs.
        case "zero stage 1":
            config["zero_optimization"] = {"stage": 1}
        case "amp":
            config["amp"] = {"enabled": True}
        case "unknown key":
            config["gradient_cliping"] = 1.0
        case "overlap":
            section["tp_overlap_comm"] = True
        case "partition config":
            section["partition_config"] = {"layer_specs": [{"patterns": ["x"], "partition_type": "row"}]}
        case "vocab parallel cross-entropy":
            section["vocab_parallel_ce_backend"] = "liger"
        case "preset of another model":
            section["preset_model"] = "bloom"
        case "grain size":
            section["tp"] = {"tp_grain_size": 64}
        case "batch does not add up":
            config["train_batch_size"] = 7
            config["gradient_accumulation_steps"] = 2
        case "unknown optimizer":
            config["optimizer"] = {"type": "Lamb"}
        case "unknown optimizer parameter":
            config["optimizer"] = {"type": "AdamW", "params": {"learning_rate": 1e-3}}
        case "two configs":
            arguments["config_params"] = config
        case "optimizer with state":
            other = torch.optim.AdamW(model.parameters())
            model(input_ids=torch.zeros(1, 2, dtype=torch.long)).logits.sum().backward()
            other.step()
            model.zero_grad()
            arguments["optimizer"] = other
        case "optimizer of another model":
            arguments["optimizer"] = torch.optim.AdamW(build().parameters())
        case "another config for the call":
            tp_model_init(model, world, "fp32", config={"train_batch_size": 64})
        case _:
            raise AssertionError(case)
    before = digest_model(model) if isinstance(model, nn.Module) and case != "meta" else None
    plain = copy.deepcopy(config)
    error = outcome(lambda: initialize(model=model, config=config, **arguments))
    return {
        **error,
        "untouched": (before is None or before == digest_model(model)) and plain == config,
        "collective": in_step(rank),
    }


def exchanged(rank: int, same: bool) -> dict[str, Any]:
    """Exchange reports that are the same on all ranks, or not; return them and how much was gathered each time."""
    texts, tensors, gathered = dist.all_gather_object, dist.all_gather, []

    def gather_text(into: list[Any], one: Any, group: Any = None) -> None:
        texts(into, one, group=group)
        gathered.append(len(one))

    def gather_tensor(into: list[torch.Tensor], one: torch.Tensor, group: Any = None) -> None:
        tensors(into, one, group=group)
        gathered.append(one.nbytes)

    dist.all_gather_object, dist.all_gather = gather_text, gather_tensor
    try:
        reports = agreement.gather_reports(
            agreement.RankReport({"a long list": list(range(1000)), "own": 0 if same else rank})
        )
    finally:
        dist.all_gather_object, dist.all_gather = texts, tensors
    return {"own": [one.fields["own"] for one in reports], "lengths": gathered}


def in_step(rank: int) -> bool:
    """Say whether all ranks still come to the same collective: nobody was left behind."""
    total = torch.tensor([rank])
    dist.all_reduce(total)
    return int(total) == sum(range(dist.get_world_size()))
