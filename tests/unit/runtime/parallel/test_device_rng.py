"""RNG states of an accelerator: only the engine's own is seeded, kept, compared and restored. The GPUs are fake."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from tpinit.runtime.parallel.device_rng import preserved_torch_rng, seed_torch
from tpinit.runtime.parallel.forward_scope import ForwardScope
from tpinit.runtime.parallel.rng import RngTracker, SharedRng, broadcast_rng_state, rng_fingerprint
from tpinit.runtime.planning.analysis.dropout_off import preserved_rng

from support.fake_cuda import FakeCuda

OWN = torch.device("cuda", 1)


class Hidden:
    """An activation on GPU 1, of which a region reads only where it is."""

    device = OWN
    is_cuda = True


@pytest.fixture
def cuda(monkeypatch):
    def reseeds_all(seed):
        raise AssertionError("torch.manual_seed reseeds every visible GPU")

    monkeypatch.setattr(torch, "manual_seed", reseeds_all)
    return FakeCuda(3).install(monkeypatch)


def draw(cuda, index=1):
    return float(torch.rand((), generator=cuda.generators[index]))


def test_only_the_own_gpu_is_seeded(cuda):
    before = cuda.states()
    with preserved_torch_rng(OWN):
        seed_torch(5, OWN)
        changed = [one != other for one, other in zip(before, cuda.states(), strict=True)]
        assert changed == [False, True, False]
        first = draw(cuda), float(torch.rand(()))
        seed_torch(5, OWN)
        assert (draw(cuda), float(torch.rand(()))) == first
    assert cuda.states() == before


def test_a_region_draws_from_states_of_the_rank_and_leaves_those_of_the_gpu_as_they_were(cuda):
    draws = []
    for rank in range(2):
        torch.default_generator.manual_seed(0)
        model = nn.Linear(2, 2)
        ForwardScope(model)
        tracker, before = RngTracker(model, rank), cuda.states()
        tracker.enter(Hidden())
        draws.append(draw(cuda))
        assert cuda.states()[0] == before[0]
        assert cuda.states()[2] == before[2]
        tracker.leave()
        assert cuda.states() == before
    assert draws[0] != draws[1]  # each rank drops other features


def test_shared_random_numbers_are_equal_on_ranks_whose_gpu_states_differ(cuda):
    draws = []
    for seed in (1, 2):  # two ranks that a script seeded each by its number
        cuda.generators[1].manual_seed(seed)
        before, rng = cuda.states(), SharedRng(OWN, 0)
        rng.enter(77)
        draws.append(draw(cuda))
        rng.leave()
        assert cuda.states() == before
    assert draws[0] == draws[1]
    own = []
    for seed in (1, 2):  # the negative control: without it they differ
        cuda.generators[1].manual_seed(seed)
        own.append(draw(cuda))
    assert own[0] != own[1]


def test_the_state_of_the_own_gpu_is_part_of_what_ranks_compare(cuda):
    before = rng_fingerprint(OWN)
    draw(cuda, 2)
    assert rng_fingerprint(OWN) == before  # another GPU's is not
    draw(cuda)
    assert rng_fingerprint(OWN) != before


def test_planning_on_a_gpu_leaves_its_state(cuda):
    before = cuda.states()
    with preserved_rng(OWN):
        draw(cuda)
    assert cuda.states() == before
    with preserved_rng():  # the negative control
        draw(cuda)
    assert cuda.states() != before


def test_the_first_ranks_gpu_state_is_sent_in_host_memory(cuda, monkeypatch):
    sent = []
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        real = dist.broadcast
        monkeypatch.setattr(dist, "broadcast", lambda one, *a, **k: (sent.append(one.clone()), real(one, *a, **k)))
        before = cuda.states()
        broadcast_rng_state(dist.group.WORLD, OWN)
        assert len(sent) == 2
        assert sent[1].tolist() == before[1]
        assert all(one.device.type == "cpu" for one in sent)
        assert cuda.states() == before
        broadcast_rng_state(dist.group.WORLD, torch.device("cpu"))
        assert len(sent) == 3  # without an accelerator one broadcast is enough
    finally:
        dist.destroy_process_group()
