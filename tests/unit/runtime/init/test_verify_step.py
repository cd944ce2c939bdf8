"""`verify_step`: what is right is proven, and no change of a recorded step, of a claim or of our own code is."""

import inspect
import random
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from tpinit.reference.errors import TpinitError
from tpinit.runtime import RecordError, verify_step
from tpinit.runtime.init.verify_step import prove_recorded, record_step
from tpinit.runtime.parallel import collectives, fused_columns
from tpinit.runtime.training.engine import Engine
from tpinit.runtime.training.gradients import GradientNorm, global_norm
from tpinit.step.calls import VIEWS, base_name
from tpinit.step.lift import ShardClaim
from tpinit.step.whole import needed_ops
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from support.step_mutants import step_mutants

CONFIG = {"train_micro_batch_size_per_gpu": 2, "gradient_clipping": 1.0}
IDS = torch.arange(14).reshape(2, 7)
BATCH = {"input_ids": IDS, "labels": IDS, "use_cache": False}
SIZES = {"hidden_size": 32, "intermediate_size": 36, "num_hidden_layers": 1, "num_attention_heads": 4}
LLAMA = {
    **SIZES,
    "attn_implementation": "eager",
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 16,
}


def seeded(kind, config):
    def make():
        torch.manual_seed(0)
        return kind(config).train()

    return make


llama = seeded(LlamaForCausalLM, LlamaConfig(**LLAMA))
qwen2 = seeded(Qwen2ForCausalLM, Qwen2Config(**LLAMA, tie_word_embeddings=True))
gpt2 = seeded(
    GPT2LMHeadModel,
    GPT2Config(
        n_embd=30,
        n_layer=1,
        n_head=5,
        vocab_size=47,
        n_positions=16,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        attn_implementation="eager",
    ),
)
FAMILIES = {"llama": (llama, 2), "gpt2": (gpt2, 3), "qwen2": (qwen2, 2)}


@pytest.fixture(scope="module")
def steps():
    """The recorded step of each family."""
    return {name: record_step(make, BATCH, CONFIG, tp_size) for name, (make, tp_size) in FAMILIES.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_right_step_is_proven(steps, family):
    verdict = prove_recorded(steps[family])
    assert verdict.proven, [one for one in verdict.results if not one.proven][:1]
    names = {one.name for one in verdict.results}
    parameters = [name for name, _ in FAMILIES[family][0]().named_parameters()]
    states = {f"state {state}:{name}" for state in ("exp_avg", "exp_avg_sq") for name in parameters}
    updates = {f"{kind} {name}" for kind in ("grad", "parameter") for name in parameters}
    assert names == {"loss", "norm"} | updates | states
    assert any(any(axis is not None for axis in claim.index) for claim in steps[family].claims.values())


def test_the_configs_optimizer_updates_both_sides_and_no_clipping_has_no_norm():
    optimizer = {"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}
    verdict = verify_step(llama, BATCH, {**CONFIG, "gradient_clipping": 0, "optimizer": optimizer}, 2)
    assert verdict.proven, [one for one in verdict.results if not one.proven][:1]
    names = {one.name for one in verdict.results}
    assert "norm" not in names
    assert "state momentum_buffer:lm_head.weight" in names


# --- controls --------------------------------------------------------------------------------------------


def lines_of(function, text=""):
    """Return the places of the lines of a function of `training` that have `text`."""
    lines, first = inspect.getsourcelines(function)
    file = f"training/{Path(inspect.getfile(function)).name}"
    return {f"{file}:{first + at}" for at, line in enumerate(lines) if text in line}


STOP_FLAGS = lines_of(GradientNorm._differ) | lines_of(Engine.backward, "_bad_loss") | lines_of(global_norm, "flag =")
SQUARES = lines_of(global_norm, "replicated * replicated")  # by which ranks that differ are told


def ends_behind(mutant):
    """Return whether a slice ends at the last element or behind, before the change and after."""
    tensor, dim, _, end, _ = mutant.op.args
    size = mutant.ranks[0].values[tensor.value].shape[dim]
    return end > size or (end == size and "+1" in mutant.kind)


EQUIVALENT = {
    "the padding row of an embedding matters to its gradient alone, which has an argument of its own": lambda mutant: (
        mutant.kind.startswith("argument 2") and base_name(mutant.op.name) == "embedding"
    ),
    "whether losses and gradients are finite and equal stops a run, and is in no result": lambda mutant: (
        mutant.op.place.line in STOP_FLAGS or (mutant.op.place.line in SQUARES and base_name(mutant.op.name) == "mul")
    ),
    "the result of a view has the recorded shape, and nothing else of a view is read": lambda mutant: (
        mutant.kind.startswith("argument") and base_name(mutant.op.name) in VIEWS
    ),
    "a slice that ends behind the last element ends with it": lambda mutant: (
        mutant.kind.startswith("argument 3") and base_name(mutant.op.name) == "slice" and ends_behind(mutant)
    ),
}


@pytest.mark.parametrize(("family", "sample"), [("llama", 60), ("gpt2", 40), ("qwen2", 40)])
def test_no_mutant_of_a_step_is_proven(steps, family, sample):
    step = steps[family]
    mutants = list(step_mutants(step.ranks))
    assert len(mutants) > 3 * sample
    collective = [one for one in mutants if one.op.name.startswith("collective.")]
    assert {"deleted", "doubled"} <= {one.kind for one in collective}
    for mutant in (*collective, *random.Random(0).sample(mutants, sample)):
        if not any(is_equivalent(mutant) for is_equivalent in EQUIVALENT.values()):
            assert not prove_recorded(replace(step, ranks=mutant.ranks)).proven, (mutant.kind, mutant.op)


@pytest.mark.parametrize("reason", EQUIVALENT)
def test_every_equivalent_mutant_is_one_that_is_proven(steps, reason):
    for step in steps.values():
        found = [one for one in step_mutants(step.ranks) if EQUIVALENT[reason](one)]
        if found:
            assert prove_recorded(replace(step, ranks=found[0].ranks)).proven
            return
    pytest.fail("no recorded step has such a mutant")


def test_every_deleted_collective_is_found_near_its_place(steps):
    step = steps["llama"]
    needed = needed_ops(step.ranks[0])
    distances = []
    for mutant in step_mutants(step.ranks):
        if mutant.kind == "deleted":
            stuck = [one.op for one in prove_recorded(replace(step, ranks=mutant.ranks)).results if one.op is not None]
            places = [needed.index(mutant.ranks[0].ops.index(op) + 1) for op in stuck]
            distances.append(min(abs(place - needed.index(mutant.index)) for place in places))
    assert len(distances) > 5
    # In the order of issue: operations that do not read the value lie between, such as those of the rotary embedding.
    assert sorted(distances)[len(distances) // 2] <= 20
    assert max(distances) <= 60


def shifted(claim, by=1):
    """Return a claim in which the bound between the first two ranks is elsewhere."""
    (dim,) = [dim for dim, pieces in enumerate(claim.index) if pieces is not None]
    (first,), (second,), *rest = claim.index[dim]
    moved = [((first[0], first[1] + by),), ((second[0] + by, second[1] - by),), *rest]
    return ShardClaim.of_pieces(claim.shape, dim, moved)


def test_no_wrong_claim_is_proven(steps):
    step = steps["llama"]
    sharded = {name: claim for name, claim in step.claims.items() if any(axis is not None for axis in claim.index)}
    assert len(sharded) > 5
    for name, claim in sharded.items():
        wrong = replace(step, claims={**step.claims, name: shifted(claim)})
        assert not prove_recorded(wrong).proven, name
        exchanged = tuple(axis if axis is None else axis[::-1] for axis in claim.index)
        wrong = replace(step, claims={**step.claims, name: replace(claim, index=exchanged)})
        assert not prove_recorded(wrong).proven, name


# What our runtime does instead of a sum over the ranks. The engine counts its collectives, and sees no difference.
FAULTS = {
    "dropped": lambda issue, tensor, group: issue("all_reduce", tensor.clone(), group=group),
    "halved": lambda issue, tensor, group: (issue("all_reduce", tensor, group=group), tensor.mul_(0.5)),
}


def with_fault(monkeypatch, fault, module, function):
    """Let one function of the runtime sum wrongly over the ranks."""
    issue = module.issue

    def issue_wrong(name, tensor, *args, **options):
        if sys._getframe(1).f_code is function.__code__:
            FAULTS[fault](issue, tensor, options["group"])
            return None
        return issue(name, tensor, *args, **options)

    monkeypatch.setattr(module, "issue", issue_wrong)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_sum_of_our_forward_is_found(monkeypatch, fault):
    with_fault(monkeypatch, fault, collectives, collectives.reduce_from_tp_region.forward.run)
    verdict = verify_step(llama, BATCH, CONFIG, 2)
    results = {one.name: one for one in verdict.results}
    assert not results["loss"].proven
    assert not results["norm"].proven
    place = results["loss"].op.place
    assert place.phase == "forward"
    assert place.line


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_sum_of_our_backward_is_found(monkeypatch, fault):
    with_fault(monkeypatch, fault, fused_columns, fused_columns._sum_over_ranks)
    verdict = verify_step(gpt2, BATCH, CONFIG, 2)
    results = {one.name: one for one in verdict.results}
    assert results["loss"].proven
    assert not results["grad transformer.h.0.ln_1.weight"].proven
    assert not results["parameter transformer.wte.weight"].proven


# --- bad input -------------------------------------------------------------------------------------------


class Branching(nn.Module):
    """A model that reads its data."""

    def __init__(self):
        super().__init__()
        self.inner = llama()
        self.config = self.inner.config

    def forward(self, **batch):
        output = self.inner(**batch)
        if float(output.logits.detach().sum()) > 1e9:
            output.loss = output.loss * 2
        return output


def without_loss():
    return llama().model


@pytest.mark.parametrize(
    ("make", "batch", "config", "tp_size", "words"),
    [
        (llama, BATCH, CONFIG, 0, "tp_size is 0"),
        (llama, BATCH, CONFIG, "2", 'tp_size is "2"'),
        (llama, BATCH, CONFIG, True, "tp_size is true"),
        (llama, {"input_ids": IDS, "use_cache": False}, CONFIG, 2, "no scalar `loss`"),
        (without_loss, {"input_ids": IDS, "use_cache": False}, CONFIG, 2, "no scalar `loss`"),
        (llama, {"nonsense": IDS}, CONFIG, 2, "the whole model does not run on this batch"),
        (Branching, BATCH, CONFIG, 2, "branches on its data"),
        (llama, BATCH, {**CONFIG, "bf16": {"enabled": True}}, 2, "parameters in bf16"),
        (llama, BATCH, {**CONFIG, "fp16": {"enabled": True}}, 2, "parameters in fp16"),
        (llama, BATCH, {**CONFIG, "zero_optimization": {"stage": 1}}, 2, "zero_optimization.stage 1"),
        (llama, BATCH, {**CONFIG, "gradient_accumulation_steps": 4}, 2, "gradient_accumulation_steps 4"),
        (llama, BATCH, {**CONFIG, "tensor_parallel": {"autotp_size": 4}}, 2, "groups of 4|world"),
        (llama, BATCH, {**CONFIG, "tensor_parallel": {"autotp_size": 1}}, 2, "groups of 1"),
        (llama, BATCH, {**CONFIG, "gradient_clipping": "much"}, 2, "gradient_clipping"),
        (llama, BATCH, CONFIG, 64, "64 ranks"),
    ],
)
def test_bad_input_is_one_clear_error(make, batch, config, tp_size, words):
    with pytest.raises(TpinitError, match=words) as caught:
        verify_step(make, batch, config, tp_size)
    assert "Traceback" not in str(caught.value)
    assert not dist.is_initialized()


def test_a_started_world_is_refused():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(RecordError, match="is started in this process"):
            verify_step(llama, BATCH, CONFIG, 2)
    finally:
        dist.destroy_process_group()


def test_models_that_differ_are_not_proven():
    sizes = iter((36, 36, 40))

    def other():
        return seeded(LlamaForCausalLM, LlamaConfig(**{**LLAMA, "intermediate_size": next(sizes)}))()

    with pytest.raises(
        RecordError, match=re.escape("the plan of rank 1 is not that of rank 0, for model.layers.0.mlp")
    ):
        verify_step(other, BATCH, CONFIG, 2)
