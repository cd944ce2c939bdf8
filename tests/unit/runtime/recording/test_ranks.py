"""The graphs of a whole step and of its ranks: run again, the ranks together give what the whole model gives."""

import logging

import pytest
import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional
from tpinit.runtime import initialize
from tpinit.runtime.recording import Recorder, RecordError, adamw, equal_world, record_rank, record_whole
from tpinit.runtime.slicing import take_pieces
from transformers import GPT2Config, GPT2LMHeadModel

from support import tiny_models

CLIPPING = 0.05  # below the norm, so that gradients are scaled


def llama():
    return tiny_models.build("llama", num_attention_heads=4, num_key_value_heads=2, intermediate_size=44)


def tied():
    return tiny_models.build("llama", num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)


def phi3():
    return tiny_models.build("phi3", num_attention_heads=6, num_key_value_heads=3, hidden_size=36)


def gpt2():
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 37, "vocab_size": 66, "use_cache": False}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "attn_implementation": "sdpa"}
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **ends, **drops)).train()


def batch():
    ids = torch.randint(3, 64, (2, 5), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, 2] = labels[1, 4] = -100
    return {"input_ids": ids, "labels": labels}


def config(tp_size):
    parallel = {"autotp_size": tp_size}
    return {"train_micro_batch_size_per_gpu": 2, "gradient_clipping": CLIPPING, "tensor_parallel": parallel}


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL, "tpinit")


def start(make):
    """Return the named leaves in front of the second step of the whole model."""
    model = make()
    optimizer = adamw(model)
    model(**batch()).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING, foreach=False)
    optimizer.step()
    names = {parameter: name for name, parameter in model.named_parameters()}
    states = [(names[one], held) for one, held in optimizer.state.items()]
    return {
        **{("parameter", name): one.detach() for name, one in model.named_parameters()},
        **{("buffer", name): one for name, one in model.named_buffers()},
        **{("batch", name): one for name, one in batch().items()},
        **{("state", f"{key}:{name}"): one for name, held in states for key, one in held.items()},
    }


def part(name, tensor, claims, rank):
    """Return what a rank holds of a named tensor, or of a result."""
    claim = claims.get(name.rpartition(":")[2].rpartition(" ")[2])
    if claim is None or claim.dim is None or tensor.shape != claim.shape:
        return tensor
    return take_pieces(tensor, claim.dim, claim.pieces[rank])


def test_the_graph_of_a_whole_step_gives_the_same_bits(replay):
    model = gpt2()
    graph = record_whole(model, batch(), CLIPPING)
    named = start(gpt2)
    with torch.no_grad():
        (results,) = replay([graph], [named])
    for name, parameter in model.named_parameters():
        assert torch.equal(results[f"parameter {name}"], parameter), name
    kinds = {name.partition(" ")[0] for name in results}
    assert kinds == {"loss", "norm", "grad", "parameter", "state"}
    assert results["norm"] > CLIPPING


@pytest.mark.parametrize(("make", "ranks"), [(llama, 1), (tied, 2), (phi3, 3), (gpt2, 2)])
def test_the_graphs_of_all_ranks_together_give_what_the_whole_gives(make, ranks, replay):
    whole = record_whole(make(), batch(), CLIPPING)
    recorded = [record_rank(initialize, make, batch(), config(ranks), rank, ranks) for rank in range(ranks)]
    claims = {one.name: one for one in recorded[0][1]}
    graphs = [graph for graph, _ in recorded]
    assert [(graph.rank, graph.ranks) for graph in graphs] == [(rank, ranks) for rank in range(ranks)]
    named = start(make)
    shards = [{key: part(key[1], one, claims, rank) for key, one in named.items()} for rank in range(ranks)]
    with torch.no_grad():
        (expected,) = replay([whole], [named])
        found = replay(graphs, shards)
    for rank, results in enumerate(found):
        assert set(results) == set(expected)
        for name, one in expected.items():
            wanted = part(name, one, claims, rank).double()
            assert (results[name].double() - wanted).abs().max() <= 1e-4 * (1e-3 + one.abs().max()), (name, rank)


def test_recording_leaves_the_process_as_it_was():
    model = llama()
    names = [set(vars(module)) for module in model.modules()]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    record_whole(model, batch())
    record_rank(initialize, llama, batch(), config(2), 1, 2)
    assert not dist.is_initialized()
    assert torch.equal(torch.get_rng_state(), state)
    assert [set(vars(module)) for module in model.modules()] == names


def test_a_rank_has_the_collectives_and_places_of_its_layers():
    graph, claims = record_rank(initialize, llama, batch(), config(2), 1, 2)
    sums = [op.place for op in graph.ops if op.name == "collective.all_reduce" and op.args[1:] == ("sum", (0, 1))]
    forward = [one.module for one in sums if one.phase == "forward"]
    assert {"model.embed_tokens", "model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj"} <= set(forward)
    assert all(one.line.startswith(("parallel/", "training/")) for one in sums)
    backward = [one.module for one in sums if one.phase == "backward"]
    assert {"model.layers.0.self_attn.q_proj", "model.layers.1.mlp.gate_proj", "lm_head"} <= set(backward)
    head = next(one for one in claims if one.name == "lm_head.weight")
    assert (head.shape, head.dim, head.pieces) == ((64, 32), 0, (((0, 32),), ((32, 32),)))


def test_a_world_that_is_there_already_is_refused_and_stays():
    with equal_world(0, 2):
        with pytest.raises(RecordError, match=r"torch\.distributed is started in this process"):
            record_rank(initialize, llama, batch(), config(2), 0, 2)
        assert dist.is_initialized()
    assert not dist.is_initialized()


def test_a_world_ends_whatever_happens():
    with pytest.raises(RecordError, match="rank 2 of a world of 2"):
        record_rank(initialize, llama, batch(), config(2), 2, 2)
    with pytest.raises(RecordError, match="no scalar `loss`"):
        record_rank(initialize, llama, {"input_ids": batch()["input_ids"]}, config(2), 0, 2)
    assert not dist.is_initialized()


def test_equal_ranks_get_sums_of_equals():
    with equal_world(1, 3):
        own = torch.arange(6.0)
        total, greatest, sent = own.clone(), own.clone(), own.clone()
        dist.all_reduce(total)
        dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
        gathered = [torch.empty(6) for _ in range(3)]
        dist.all_gather(gathered, own)
        joined, chunk, exchanged = torch.empty(18), torch.empty(2), torch.empty(6)
        dist.all_gather_single(joined, own)
        dist.reduce_scatter_single(chunk, own)
        dist.all_to_all_single(exchanged, own)
        dist.broadcast(sent, 0)
        with pytest.raises(RecordError, match="'product' isn't simulated"):
            dist.all_reduce(own.clone(), op=dist.ReduceOp.PRODUCT)
        with pytest.raises(RecordError, match=r"c10d\.send\.default, a message between ranks"):
            dist.send(own, 0)
    assert torch.equal(total, own * 3)
    assert torch.equal(greatest, own)
    assert all(torch.equal(one, own) for one in (*gathered, *joined.chunk(3), sent))
    assert torch.equal(chunk, torch.tensor([6.0, 9.0]))
    assert torch.equal(exchanged, torch.tensor([2.0, 3.0] * 3))


def test_functional_collectives_are_recorded_and_simulated_as_the_others_are(replay):
    x = torch.arange(4.0)
    with equal_world(1, 2):
        recorder = Recorder([("batch", "x", x)])
        with recorder:
            total = functional.all_reduce(x, "sum", dist.group.WORLD) * 1
            chunk = functional.reduce_scatter_single(total, "sum", 0, dist.group.WORLD) + 0
            joined = functional.all_gather_single(chunk, 0, dist.group.WORLD) + 0
            results = {"total": total, "chunk": chunk, "joined": joined}
            values = {name: recorder.value_of(one) for name, one in results.items()}
    graph = recorder.graph(values, 1, 2)
    calls = [(op.name, op.args[1:]) for op in graph.ops if op.name.startswith("collective.")]
    kinds = [("all_reduce", "sum"), ("reduce_scatter", "sum"), ("all_gather", None)]
    assert calls == [(f"collective.{kind}", (reduction, (0, 1))) for kind, reduction in kinds]
    named = {("batch", "x"): x}
    _, found = replay([graph, graph], [named, named])
    assert all(torch.equal(found[name], one) for name, one in results.items() if name == "total")
    assert torch.equal(chunk, torch.tensor([8.0, 12.0]))
    assert torch.equal(joined, chunk.repeat(2))
