"""Every private name of torch's autograd that the runtime leans on exists and behaves as expected, by its name."""

import contextlib

import pytest
import torch
from tpinit.runtime.internals import autograd_private


def numbers():
    weight = torch.nn.Parameter(torch.ones(2))
    first = autograd_private.next_node_number()
    output = (weight * 2).sum()
    assert autograd_private.next_node_number() == first + 2
    assert autograd_private.node_number(output.grad_fn) == first + 1


def parameters():
    weight = torch.nn.Parameter(torch.ones(2))
    output = (weight * 2).exp()
    ((inner, nothing),) = autograd_private.inputs_of(output.grad_fn)
    assert nothing is None
    ((_, found),) = autograd_private.inputs_of(inner)
    assert found is weight


def backwards(monkeypatch):
    original = getattr(torch.autograd._engine_run_backward, autograd_private._MARK, torch.autograd._engine_run_backward)
    monkeypatch.setattr(torch.autograd, "_engine_run_backward", original)
    seen = []

    @contextlib.contextmanager
    def around(nodes, leaves):
        before = weight.grad
        yield
        seen.append((nodes, leaves, weight.grad is not before))

    autograd_private.run_around_backward(around, lambda inputs, found: (inputs[0] is weight, *found))
    autograd_private.run_around_backward(contextlib.nullcontext, lambda inputs, found: ())
    weight = torch.nn.Parameter(torch.ones(()))
    output = weight * 2
    output.backward(retain_graph=True)
    assert torch.autograd.grad(output, weight) == (True, torch.tensor(2.0))
    weight.backward()
    torch.autograd.backward(torch.autograd.graph.get_gradient_edge(weight * 3))
    expected = [(1, [], True), (1, [], False), (0, [weight], False), (1, [], False)]  # a gradient is there first
    assert [(len(nodes), *rest) for nodes, *rest in seen] == expected
    assert weight.grad == 2 + 1 + 3


CHECKS = {
    "torch.autograd._get_sequence_nr": numbers,
    "Node._sequence_nr": numbers,
    "AccumulateGrad.variable": parameters,
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_private_name_behaves_as_expected(name):
    CHECKS[name]()


def test_each_backward_goes_through_one_function(monkeypatch):
    backwards(monkeypatch)


def test_each_name_has_a_check():
    assert set(autograd_private.PRIVATE_NAMES) == {*CHECKS, "torch.autograd._engine_run_backward"}
