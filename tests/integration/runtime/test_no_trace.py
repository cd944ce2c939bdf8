"""Planning leaves a model as it was: attributes, flags, hooks, buffers, modes, configs and random states."""

import contextlib
import random

import pytest
import torch
import transformers
from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning import plan_model
from tpinit.runtime.planning.analysis.no_trace import no_trace

from families import catalogue


def state_of(model):
    """Return everything that planning could change: attributes by identity, dicts by entries, buffers by value."""
    found = {"rng": torch.get_rng_state().tolist(), "python": random.getstate(), "grad": torch.is_grad_enabled()}
    for name, module in model.named_modules():
        found[name, "class"] = type(module)
        for key, value in vars(module).items():
            inner = {one: id(held) for one, held in value.items()} if isinstance(value, dict) else None
            inner = sorted(map(id, value)) if isinstance(value, (list, set)) else inner
            found[name, key] = (id(value), inner, value if type(value) in (bool, int, float, str) else None)
        found[name, "order"] = list(vars(module))
        if hasattr(getattr(module, "config", None), "to_dict"):
            found[name, "config"] = (id(module.config), module.config.to_dict())
    for name, buffer in model.named_buffers():
        found[name, "buffer"] = buffer.tolist()
    for name, parameter in model.named_parameters():
        found[name, "parameter"] = (id(parameter), parameter._version, parameter.grad is None)
    return found


@pytest.mark.parametrize("name", sorted(catalogue.FAMILIES))
def test_planning_leaves_a_family_as_it_was(name):
    model = catalogue.build(name).train()
    before = state_of(model)
    with contextlib.suppress(PlanError):
        plan_model(model, 2, 0)
    after = state_of(model)
    assert [key for key in {**before, **after} if before.get(key) != after.get(key)] == []


def test_hooks_that_record_outputs_work_after_planning():
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, output_hidden_states=True, output_attentions=True, attn_implementation="eager",
    )  # fmt: skip
    for run_before in (False, True):
        model = transformers.LlamaForCausalLM(config)
        ids = torch.arange(6)[None]
        if run_before:
            model(input_ids=ids)
        plan_model(model, 2, 0)
        output = model(input_ids=ids)
        assert len(output.hidden_states) == 3
        assert len(output.attentions) == 2


class Careless(nn.Module):
    """A module whose forward counts its calls, keeps its input, writes to a buffer in place and installs a hook."""

    def __init__(self):
        super().__init__()
        self.calls, self.log, self.marks, self.counts = 0, [], {1}, {"calls": 0}
        self.register_buffer("seen", torch.zeros(2))
        self.inner = nn.Linear(2, 2)

    def forward(self, hidden):
        self.calls += 1
        self.log.append(hidden)
        self.marks.add(self.calls + 1)
        self.counts["calls"] += 1
        self.last = hidden
        self.seen += 1
        self.inner.register_forward_hook(lambda *_: None)
        del self.inner.bias
        self.inner.bias = None
        return self.inner(hidden)


def test_what_a_forward_sets_is_restored():
    model = Careless()
    before = state_of(model)
    with no_trace(model):
        model(torch.ones(1, 2))
        assert state_of(model) != before
    assert state_of(model) == before


def test_what_a_forward_sets_is_restored_if_it_raises():
    model = Careless()
    before = state_of(model)
    with pytest.raises(RuntimeError), no_trace(model):
        model(torch.ones(1, 3))
    assert state_of(model) == before


def test_a_forward_without_it_leaves_a_trace():
    model = Careless()
    before = state_of(model)
    model(torch.ones(1, 2))
    assert state_of(model) != before
