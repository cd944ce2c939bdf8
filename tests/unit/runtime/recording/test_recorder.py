"""A recorder loses nothing: its graph, run again, gives the same bits; and what it can't see it refuses."""

import pytest
import torch
from tpinit.runtime.recording import Recorder, RecordError, module_paths
from tpinit.step.graph import Ref, from_json, to_json


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def record(function, **named):
    """Return the graph of a function of named tensors, and what the function returned."""
    recorder = Recorder([("batch", name, tensor) for name, tensor in named.items()])
    with recorder:
        found = function(**named)
        outputs = found if isinstance(found, tuple) else (found,)
        results = {f"result {index}": recorder.value_of(one) for index, one in enumerate(outputs)}
    return recorder.graph(results), outputs


def names(graph):
    return [op.name for op in graph.ops]


# --- the graph, run again, gives the same bits ------------------------------------------------------------


def in_place(x, y):
    total = x * 2
    kept = total + 0
    total.add_(y, alpha=0.5)
    total *= kept
    return total, kept


def write_through_a_view(x, y):
    base = x.clone()
    row, column, flat = base[1], base[:, 2], base.view(-1)
    row.copy_(y[0])
    column.mul_(3)
    return base, row, column, flat[4:9], base.t() @ y


def write_through_a_view_of_a_view(x, y):
    base = x + 1
    inner = base.t()[1:].unsqueeze(0)
    other = base[:2].view(-1)
    inner[0, 0].add_(y[:, 0])
    other.sub_(1)
    return base, inner, other


def write_through_one_of_several_views(x, y):
    base = x + y
    left, right = base.split([2, 3], dim=1)
    right.exp_()
    first, *_ = base.unbind(0)
    first.zero_()
    return base, left, right


def write_to_a_leaf(x, y):
    view = x[1:]
    before = view * 1
    x.mul_(y)
    return x, view, before


def several_outputs(x, y):
    values, places = torch.topk(x, 2, dim=1)
    mean, variance = torch.var_mean(y, dim=0)
    return values, places, mean, variance, torch.cat([values, y[:, :1]], dim=1)


def lists_in_place(x, y):
    one, other = x.clone(), y.clone()
    torch._foreach_mul_([one, other[1:]], 3.0)
    torch._foreach_addcmul_([one, other], [x, y], [y, x], 0.5)
    return one, other


def out_argument(x, y):
    result = torch.empty(3, 5)
    torch.mul(x, y, out=result)
    torch.add(x, y, out=result[:, :])
    grown = torch.empty(0)
    torch.sub(x, y, out=grown)
    grown.neg_()
    return result, grown


def new_memory(x, y):
    holder = torch.nn.Parameter(x.clone(), requires_grad=False)
    kept = holder.data
    holder.data = y * 2
    holder.data[0] += 1
    return holder, kept


def other_shape_in_place(x, y):
    base = x.clone()
    base.t_()
    base.squeeze_().unsqueeze_(0)
    base.add_(y.t())
    return base, base.transpose_(1, 2) * 1


def host_numbers(x, y):
    weights = torch.tensor([2.0, 0.5, 1.0, 3.0, 0.0])
    scale = x.sum().item()
    return (y * weights + scale) if scale else y, torch.as_tensor([1, 2])


def gradients(x, y):
    weight = x.clone().requires_grad_()
    (torch.nn.functional.softmax(weight @ y.t(), dim=-1).square().sum()).backward()
    (weight[0] * 2).sum().backward()
    return (weight.grad,)


def other_dtype(x, y):
    bits = x.clone().view(torch.int32)
    base = y.clone()
    base.view(torch.int32).bitwise_and_(0x7FFFFFFF)
    return bits, base, x.to(torch.bfloat16)


FUNCTIONS = (
    in_place,
    write_through_a_view,
    write_through_a_view_of_a_view,
    write_through_one_of_several_views,
    write_to_a_leaf,
    several_outputs,
    lists_in_place,
    out_argument,
    new_memory,
    other_shape_in_place,
    host_numbers,
    gradients,
    other_dtype,
)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda one: one.__name__)
def test_a_graph_run_again_gives_the_same_bits(function, replay):
    x, y = drawn(3, 5), drawn(3, 5, seed=1)
    graph, outputs = record(function, x=x.clone(), y=y.clone())
    assert from_json(to_json(graph)) == graph
    (results,) = replay([graph], [{("batch", "x"): x, ("batch", "y"): y}])
    assert len(results) == len(outputs)
    for (name, found), output in zip(results.items(), outputs, strict=True):
        assert torch.equal(found, output), name


# --- what an operation is ---------------------------------------------------------------------------------


def test_a_write_makes_a_new_value_and_leaves_the_old_one():
    graph, _ = record(lambda x: x.add_(1), x=drawn(2))
    (op,) = graph.ops
    assert (op.name, op.args) == ("aten.add_.Tensor", (Ref(0), 1, 1))
    assert op.outputs == (1,)
    assert graph.results == {"result 0": 1}


def test_a_write_through_a_view_has_its_chain_from_the_root():
    def write(x):
        x.t().split(2)[1][0].zero_()
        return x

    graph, _ = record(write, x=drawn(3, 4))
    (last,) = [op for op in graph.ops if op.name == "tpinit.write_view"]
    chain = (("aten.t.default",), ("aten.split.Tensor[1]", 2, 0), ("aten.select.int", 0, 0))
    assert last.args == (Ref(0), Ref(last.args[1].value), chain)
    assert graph.values[last.outputs[0]].shape == (3, 4)
    assert graph.results == {"result 0": last.outputs[0]}


def test_a_view_is_made_again_only_when_it_is_read_after_a_write():
    def read(x):
        view = x[0]
        x.add_(1)
        x.add_(1)
        return view * 2

    graph, _ = record(read, x=drawn(2, 2))
    assert names(graph) == [
        "aten.select.int",
        "aten.add_.Tensor",
        "aten.add_.Tensor",
        "aten.select.int",
        "aten.mul.Tensor",
    ]


def test_an_identity_is_no_operation():
    graph, _ = record(lambda x: x.detach().data, x=drawn(2))
    assert (graph.ops, graph.results) == ((), {"result 0": 0})


def test_all_arguments_are_there_with_their_defaults_and_dtypes_as_text():
    graph, _ = record(lambda x: x.to(torch.float64).sum(0), x=drawn(2, 3))
    assert [op.args for op in graph.ops] == [
        (Ref(0), "torch.float64", None, None, None, False, None),
        (Ref(1), (0,), False, None),
    ]


def test_a_constant_has_a_digest_of_its_elements_and_few_numbers():
    def constants(x):
        return x + torch.tensor([1.5, 2.0]) + torch.tensor([1.5, 2.0]) + torch.tensor([1.5, 3.0]), torch.ones(65)[
            :2
        ] + x

    graph, _ = record(constants, x=drawn(2))
    first, second, third = [leaf for leaf in graph.leaves if leaf.kind == "constant"]
    assert first.numbers == ("1.5", "2.0")
    assert first.name == second.name != third.name
    many, _ = record(lambda x: x + torch.tensor([0.5] * 65), x=drawn(65))
    assert many.leaves[1].numbers == ()


def test_what_the_host_reads_is_a_premise():
    def read(x, flags):
        number = float(x[0])
        listed = x.tolist()
        equal = torch.equal(x, x)
        array = x.numpy()
        found = x[flags]
        return found * number * len(listed) * equal * array.shape[0]

    graph, _ = record(read, x=torch.tensor([2.0, 3.0]), flags=torch.tensor([True, False]))
    assert names(graph).count("tpinit.read") == 3
    kinds = [op.args[1] for op in graph.ops if op.name == "tpinit.read"]
    assert kinds == ["tolist", "numpy", "shape"]
    numbers = [text for _, text in graph.premises]
    assert (numbers[:3], numbers[4]) == (["2.0", "[2.0, 3.0]", "True"], "[1]")
    assert graph.values[graph.premises[2][0]].shape == ()


def test_a_draw_names_the_state_of_its_generator():
    def draws(x):
        return torch.nn.functional.dropout(x, 0.5), torch.rand(2), torch.nn.functional.dropout(x, 0.5, training=False)

    states = []
    for seed in (0, 0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            graph, _ = record(draws, x=drawn(8))
        states.append([op.args[-1] for op in graph.ops if str(op.args[-1]).startswith("rng:")])
    assert len(set(states[0])) == 2
    assert states[0] == states[1]
    assert not set(states[0]) & set(states[2])


def test_running_statistics_are_written_though_no_schema_says_so(replay):
    norm = torch.nn.BatchNorm1d(3)
    x = drawn(4, 3)
    recorder = Recorder([("batch", "x", x), ("buffer", "mean", norm.running_mean)])
    with recorder:
        norm(x)
        twice = norm.running_mean * 2
        results = {"twice": recorder.value_of(twice)}
    graph = recorder.graph(results)
    (mean,) = [leaf.value for leaf in graph.leaves if leaf.name == "mean"]
    (read,) = [op for op in graph.ops if op.name == "aten.mul.Tensor"]
    assert read.args[0] != Ref(mean)


def test_a_place_is_a_module_a_line_and_a_phase():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU())
    x = drawn(2, 3)
    recorder = Recorder([("batch", "x", x)], module_paths(model))
    with recorder:
        loss = model(x).sum()
        recorder.phase = "backward"
        loss.backward()
    places = {op.name: op.place for op in recorder.graph({}).ops}
    assert (places["aten.addmm.default"].module, places["aten.gelu.default"].module) == ("0", "1")
    assert (places["aten.gelu_backward.default"].module, places["aten.mm.default"].module) == ("1", "0")
    assert places["aten.sum.default"].module == ""
    assert {one.phase for one in places.values()} == {"forward", "backward"}
    assert all(one.line.startswith("recording/test_recorder.py:") for one in places.values())


# --- what can't be recorded is refused --------------------------------------------------------------------


def test_a_tensor_that_no_operation_made_is_refused():
    hidden = []

    def unseen(x):
        with torch.utils._python_dispatch._disable_current_modes():
            hidden.append(x.exp())
        return hidden[0] + 1

    with pytest.raises(RecordError, match=r"shape \[2\] is read in recording/test_recorder.py:.*run it eagerly"):
        record(unseen, x=drawn(2))


def test_a_tensor_that_lived_before_is_a_constant():
    before = drawn(2)
    graph, _ = record(lambda x: x + before, x=drawn(2, seed=1))
    assert [leaf.kind for leaf in graph.leaves] == ["batch", "constant"]


def test_a_write_to_memory_of_which_another_view_is_known_is_refused():
    base = drawn(4)
    front, back, apart = base[:3], base[2:], base[3:]

    def write(x):
        front.add_(x)
        return back * 1

    def read_first(x):
        total = back * 1
        front.add_(x)
        return total

    for function in (write, read_first):
        with pytest.raises(RecordError, match="how the two overlap was not seen"):
            record(function, x=drawn(3, seed=1))
    graph, _ = record(lambda x: (apart * 1, front.add_(x)), x=drawn(3, seed=1))
    assert len(graph.ops) == 2


def test_memory_that_passes_through_an_array_is_refused():
    with pytest.raises(RecordError, match="how the two overlap was not seen"):
        record(lambda x: torch.from_numpy(x.numpy()).add_(1), x=drawn(2))
    graph, _ = record(lambda x: torch.from_numpy(x.numpy().copy()).add_(1), x=drawn(2))
    assert [leaf.kind for leaf in graph.leaves] == ["batch", "constant"]
    assert names(graph) == ["tpinit.read", "aten.add_.Tensor"]


def test_a_list_that_writes_one_memory_twice_is_refused():
    def twice(x):
        torch._foreach_add_([x[0], x[1], x[0]], 1.0)

    def crossed(x):
        torch._foreach_add_([x[0], x[1]], [x[1], x[0]])

    def own(x):
        torch._foreach_add_([x[0], x[1]], [x[0], x[1]])
        return x

    for function in (twice, crossed):
        with pytest.raises(RecordError, match="tensors that share memory"):
            record(function, x=drawn(2, 3))
    graph, _ = record(own, x=drawn(2, 3))
    assert names(graph).count("tpinit.write_view") == 2


def test_sparse_tensors_and_new_memory_in_place_are_refused():
    with pytest.raises(RecordError, match="only dense ones are recorded"):
        record(lambda x: x.to_sparse(), x=drawn(2))
    with pytest.raises(RecordError, match="other memory in place"):
        record(lambda x: (x * 1).resize_(64), x=drawn(2))
    with pytest.warns(UserWarning, match="resized"), pytest.raises(RecordError, match="other memory in place"):
        record(lambda x: torch.add(x, x, out=torch.zeros(3)), x=drawn(2))


def test_a_tensor_class_of_its_own_is_recorded_by_what_it_calls():
    from torch.testing._internal.two_tensor import TwoTensor

    a, b = drawn(2), drawn(2, seed=1)
    recorder = Recorder([("batch", "a", a), ("batch", "b", b)])
    with recorder:
        result = TwoTensor(a, b) * 3
        results = {"a": recorder.value_of(result.a), "b": recorder.value_of(result.b)}
    graph = recorder.graph(results)
    assert names(graph).count("aten.mul.Tensor") == 2


def test_nothing_is_left_behind_an_error():
    with pytest.raises(ZeroDivisionError):
        record(lambda x: x / (1 // 0), x=drawn(2))
    recorder = Recorder()
    drawn(2).tolist()
    drawn(2).exp()
    assert recorder.graph({}).ops == ()
