"""An interpreter of recorded graphs: it runs the operations of one or more ranks again, from given leaves."""

from fractions import Fraction

import pytest
import torch


def leaf_tensor(leaf, value, named):
    if leaf.kind != "constant":
        return named[leaf.kind, leaf.name]
    dtype = getattr(torch, value.dtype)
    assert leaf.numbers or 0 in value.shape, f"the elements of a constant of shape {value.shape} are not in the graph"
    numbers = [float(one) if dtype.is_floating_point else int(Fraction(one)) for one in leaf.numbers]
    return torch.tensor(numbers, dtype=dtype).reshape(value.shape)


def decoded(arg, values):
    if isinstance(arg, tuple):
        return [decoded(one, values) for one in arg]
    if isinstance(arg, str):
        if arg.startswith("torch."):
            return getattr(torch, arg.removeprefix("torch."))
        return torch.device(arg) if arg in ("cpu", "meta") else arg
    return values[arg.value] if hasattr(arg, "value") else arg


def call(name, args):
    """Call an operator by its recorded name with all of its arguments in the order of its schema."""
    space, base, overload = name.split(".")
    operator = getattr(getattr(getattr(torch.ops, space), base), overload)
    schema = operator._schema.arguments
    given = list(zip(schema, args, strict=False))
    written = [(one, arg) for one, arg in given if one.alias_info is not None and one.alias_info.is_write]
    copies = {one.name: copied(arg) for one, arg in written}
    positional = [copies.get(one.name, arg) for one, arg in given if not one.kwarg_only]
    keywords = {one.name: copies.get(one.name, arg) for one, arg in given if one.kwarg_only}
    result = operator(*positional, **keywords)
    changed = [one for arg in copies.values() for one in (arg if isinstance(arg, list) else [arg])]
    fresh = [one for one in flat(result) if not any(one is other for other in changed)]
    return [*fresh, *changed]


def copied(arg):
    if isinstance(arg, list):
        return [copied(one) for one in arg]
    return torch.empty_strided(arg.shape, arg.stride(), dtype=arg.dtype).copy_(arg)


def flat(result):
    if isinstance(result, (tuple, list)):
        return [one for part in result for one in flat(part)]
    return [] if result is None else [result]


def written_root(root, part, chain):
    found = view = copied(root)
    for name, *rest in chain:
        base, _, index = name.partition("[")
        views = call(base, [view, *rest])
        view = views[int(index.rstrip("]")) if index else 0]
    view.copy_(part)
    return found


def run(graph, named):
    """Yield (kind, sent, reduction, output shapes) at each collective, and take what it receives; return the values."""
    values = {one.value: leaf_tensor(one, graph.values[one.value], named) for one in graph.leaves}
    premises = iter(graph.premises)
    for op in graph.ops:
        args = [decoded(one, values) for one in op.args if not (isinstance(one, str) and one.startswith("rng:"))]
        if op.name.startswith("collective."):
            made = yield op.name.partition(".")[2], args, [graph.values[one] for one in op.outputs]
        elif op.name == "tpinit.write_view":
            made = [written_root(*args)]
        elif op.name == "tpinit.read":
            read = next(premises)[1]  # by a simulated rank: another number
            assert args[1] != "tolist" or graph.ranks > 1 or repr(args[0].tolist()) == read, op
            continue
        else:
            made = call(op.name, args)
            if not op.outputs:
                assert repr(made[0]) == next(premises)[1], op
                continue
            made = [one if isinstance(one, torch.Tensor) else torch.tensor(one) for one in made]
        assert len(made) == len(op.outputs), op
        for value, tensor in zip(op.outputs, made, strict=True):
            wanted = graph.values[value]
            assert (tuple(tensor.shape), str(tensor.dtype)) == (wanted.shape, f"torch.{wanted.dtype}"), op
            values[value] = tensor
    return {name: values[value] for name, value in graph.results.items()}


def exchanged(calls, position):
    """Return what the rank at a position receives of a collective, given the calls of all ranks."""
    kind, args, outputs = calls[position]
    assert {one[0] for one in calls} == {kind}
    sent = [one[1][0] for one in calls]
    if kind == "all_reduce":
        combine = {"sum": lambda each: each.sum(0), "max": lambda each: each.amax(0)}[args[1]]
        return [combine(torch.stack(each)).to(each[0].dtype) for each in zip(*sent, strict=True)]
    if kind == "broadcast":
        return [one.clone() for one in sent[args[2].index(args[3])]]
    if kind == "all_gather":
        each = [one[0] for one in sent]
        return each if len(outputs) > 1 else [torch.cat([one.reshape(-1) for one in each]).view(outputs[0].shape)]
    if kind == "reduce_scatter":
        whole = [torch.cat(one) if len(one) > 1 else one[0] for one in sent]
        return [torch.stack(whole).sum(0).chunk(len(calls))[position].reshape(outputs[0].shape)]
    assert kind == "barrier", kind
    return []


def advanced(one, answer):
    """Return what an interpreter yields next, and None; or None, and what it returned."""
    try:
        return one.send(answer), None
    except StopIteration as end:
        return None, end.value


def run_ranks(graphs, named):
    """Run the graphs of all ranks from their leaves, with real collectives between them; return the results of each."""
    runs = [run(graph, own) for graph, own in zip(graphs, named, strict=True)]
    answers = [None] * len(runs)
    while True:
        calls, results = zip(*map(advanced, runs, answers), strict=True)
        if None not in results:
            return results
        assert None not in calls, "the ranks issue different numbers of collectives"
        answers = [exchanged(calls, rank) for rank in range(len(calls))]


@pytest.fixture
def replay():
    """Return a function: graphs of all ranks, and the named leaves of each, to the results of each."""
    return run_ranks
