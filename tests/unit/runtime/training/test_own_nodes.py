"""The nodes of a graph that a model's forwards made are told from all others, in each thread."""

import copy
import threading

import pytest
import torch
from tpinit.runtime.internals.autograd_private import node_number
from tpinit.runtime.training import own_nodes
from tpinit.runtime.training.own_nodes import OwnNodes

WEIGHT = torch.nn.Parameter(torch.ones(2))


def made():
    return node_number((WEIGHT * 2).grad_fn)


def forward(nodes, *args, **kwargs):
    nodes.enter(torch.nn.Identity(), args, kwargs)
    number = made()
    assert nodes.leave(torch.nn.Identity(), "output") == "output"
    return number


def test_a_node_between_enter_and_leave_is_the_models():
    nodes = OwnNodes()
    before, inside, after = made(), forward(nodes), made()
    assert [nodes.find(one) for one in (before, inside, after)] == [None, True, None]


@pytest.mark.parametrize(
    ("given", "closed"),
    [
        ({"ids": torch.ones(1), "flag": True, "nested": [{"x": None}]}, True),
        ({"embedded": WEIGHT * 1}, False),
        ({"nested": ({"embedded": WEIGHT * 1},)}, False),
        ({"object": object()}, False),
    ],
)
def test_a_span_is_closed_if_no_input_needs_a_gradient(given, closed):
    nodes = OwnNodes()
    assert nodes.find(forward(nodes, **given)) is closed


def test_a_lone_call_lasts_until_a_backward_and_needs_gradients():
    nodes = OwnNodes()
    with torch.no_grad():
        nodes.begin_lone()
    nodes.end_lone()
    nodes.begin_lone()
    lone, inside = made(), forward(nodes)
    nodes.end_lone()
    after = made()
    assert [nodes.find(one) for one in (lone, inside, after)] == [False, True, None]


def test_a_closed_context_inside_a_forward_is_part_of_it():
    nodes = OwnNodes()
    nodes.enter(torch.nn.Identity(), (WEIGHT * 1,), {})
    with nodes.closed():
        inside = made()
    nodes.leave(torch.nn.Identity(), None)
    with nodes.closed():
        alone = made()
    assert (nodes.find(inside), nodes.find(alone)) == (False, True)


def test_threads_number_their_nodes_themselves():
    nodes = OwnNodes()
    found = []
    thread = threading.Thread(target=lambda: found.append(forward(nodes)))
    thread.start()
    thread.join()
    own = [forward(nodes) for _ in range(3)]
    assert nodes.find(found[0]) is True
    assert all(nodes.find(one) for one in own)


def test_the_oldest_forwards_become_one_span(monkeypatch):
    monkeypatch.setattr(own_nodes, "_KEPT", 4)
    nodes = OwnNodes()
    numbers, between = [], []
    for _ in range(12):
        numbers.append(forward(nodes))
        between.append(made())
    assert all(nodes.find(one) for one in numbers)
    assert nodes.find(between[0]) is True  # too old to tell
    assert nodes.find(between[-1]) is None
    assert len(*nodes._spans.values()) <= 9


def test_a_copy_knows_no_forwards():
    nodes = OwnNodes()
    number = forward(nodes)
    assert copy.deepcopy(nodes).find(number) is None
