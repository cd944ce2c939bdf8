"""Every private name of torch that the runtime leans on exists and behaves as the runtime expects, by its name."""

import inspect

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import get_total_norm
from tpinit.runtime.internals import torch_private


def llama(**settings):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=32, num_hidden_layers=1, **sizes, **settings)
    )


def module_dicts(name):
    module = nn.BatchNorm1d(3)
    module.add_module("inner", nn.Linear(2, 2))
    found = {
        "_parameters": (torch_private.parameters_of(module), {"weight", "bias"}),
        "_buffers": (torch_private.buffers_of(module), {"running_mean", "running_var", "num_batches_tracked"}),
        "_modules": (torch_private.children_of(module), {"inner"}),
    }[name]
    assert set(found[0]) == found[1]
    assert name in torch_private.empty_module_state()


def hooks(name):
    assert name in torch_private.FORWARD_HOOKS
    module = nn.Linear(2, 2)
    if "pre" in name:
        module.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    else:
        module.register_forward_hook(lambda *_: None, with_kwargs=True)
    assert len(getattr(module, name)) == 1
    getattr(module, name).clear()


def backward_hooks(name):
    assert name in torch_private.BACKWARD_HOOKS
    module = nn.Linear(2, 2)
    register = module.register_full_backward_pre_hook if "pre" in name else module.register_full_backward_hook
    register(print)
    ((kind, function),) = torch_private.attached_hooks(module)
    assert function is print
    assert "backward" in kind
    assert len(getattr(module, name)) == 1
    legacy = nn.Linear(2, 2)
    legacy.register_backward_hook(print)
    assert torch_private.attached_hooks(legacy) == [("backward hook", print)]


def hooks_of_all_modules():
    register = torch.nn.modules.module
    handles = [
        register.register_module_forward_hook(print),
        register.register_module_forward_pre_hook(print),
        register.register_module_full_backward_hook(print),
        register.register_module_full_backward_pre_hook(print),
    ]
    found = torch_private.global_hooks()
    for handle in handles:
        handle.remove()
    assert {kind for kind, _ in found} == {
        "global forward hook",
        "global forward pre-hook",
        "global backward hook",
        "global backward pre-hook",
    }
    assert torch_private.global_hooks() == []


def hooks_of_tensors():
    parameter = nn.Parameter(torch.zeros(2))
    assert torch_private.tensor_hooks(parameter) == []
    parameter.register_hook(print)
    parameter.register_post_accumulate_grad_hook(print)
    assert [function for _, function in torch_private.tensor_hooks(parameter)] == [print, print]


def tensor_subclass():
    class Named(nn.Parameter):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            with torch_private.plain_tensor_functions():
                return "read", func(*args, **(kwargs or {}))

    found = torch_private.as_subclass(nn.Parameter(torch.ones(3)), Named)
    assert type(found) is Named
    assert found.shape == ("read", torch.Size([3]))
    assert found.requires_grad == ("read", True)


def call_methods():
    class Other(nn.Linear):
        def _call_impl(self, *args):
            return super()._call_impl(*args)

    for name in ("__call__", *torch_private.CALL_METHODS):
        assert torch_private.is_original_method(nn.Linear, name)
    assert not torch_private.is_original_method(Other, "_call_impl")


def batch_norm():
    assert torch_private.is_batch_norm(nn.BatchNorm2d(2))
    assert torch_private.is_batch_norm(nn.InstanceNorm1d(2))
    assert not torch_private.is_batch_norm(nn.LayerNorm(2))


def storages():
    one, other = torch.zeros(4), torch.zeros(4)
    assert torch_private.storage_key(one) == torch_private.storage_key(one[1:].view(3, 1))
    assert torch_private.storage_key(one) != torch_private.storage_key(other)
    assert torch_private.storage_key(torch.empty(4, device="meta")) != 0


def versions():
    tensor = torch.zeros(2)
    before = torch_private.version_of(tensor)
    tensor.add_(1)
    assert torch_private.version_of(tensor) == before + 1


def schemas():
    aten = torch.ops.aten
    assert torch_private.is_mutable(aten.add_.Tensor)
    assert torch_private.writes_only_first(aten.add_.Tensor)
    assert not torch_private.is_mutable(aten.add.Tensor)
    assert not torch_private.writes_only_first(aten.aminmax.out)
    assert torch_private.named_arguments(aten.bernoulli_.float, (1, 0.5), {}) == {"self": 1, "p": 0.5}


def truncated_normal():
    assert "_no_grad_trunc_normal_" in torch_private.NO_OP_ON_META
    assert inspect.signature(torch.nn.init._no_grad_trunc_normal_).parameters.keys() >= {"tensor", "mean", "std"}
    assert set(torch_private.NO_OP_ON_META) <= set(torch_private.init_namespace())
    assert torch.nn.init.trunc_normal_(torch.empty(3, device="meta")).is_meta


def dispatch_mode():
    seen = []

    class Mode(torch_private.PlainDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        torch.zeros(2) + 1
    assert torch.ops.aten.add.Tensor in seen


def dynamo_guard():
    base = torch_private.TorchDispatchMode
    assert inspect.ismethod(base._should_skip_dynamo)
    assert torch_private.PlainDispatchMode._should_skip_dynamo() is False


def leaves():
    tensor = torch.zeros(1)
    assert torch_private.tree_leaves({"a": [tensor, (1,)]}) == [tensor, 1]


def mapped():
    assert torch_private.tree_map_only(int, lambda value: value + 1, {"a": [1, "b"]}) == {"a": [2, "b"]}


def class_assignment():
    class Other(nn.Linear):
        pass

    module = nn.Linear(2, 2)
    weight = module.weight
    torch_private.set_class(module, Other)
    assert isinstance(module, Other)
    assert module.weight is weight


def blocks_of_normal():
    size = torch_private.NORMAL_BLOCK
    torch.manual_seed(0)
    whole = torch.empty(10 * size).normal_()
    torch.manual_seed(0)
    parts = torch.cat([torch.empty(3 * size).normal_(), torch.empty(7 * size).normal_()])
    assert torch.equal(whole, parts)
    torch.manual_seed(0)
    other = torch.cat([torch.empty(size + 3).normal_(), torch.empty(9 * size - 3).normal_()])
    assert not torch.equal(whole, other)


def asserted():
    torch_private.assert_async(torch.tensor(True), "fine")
    with pytest.raises(RuntimeError, match="not fine"):
        torch_private.assert_async(torch.tensor(False), "not fine")


def compiled_call_in_the_stack():
    seen = []
    look = torch.compiler.disable(lambda: seen.append(torch_private.in_compiled_call()))

    def call():
        look()

    call()
    torch.compile(call, backend="eager")()
    assert seen == [False, True]


def compiled_module_holds_the_original():
    module = nn.Linear(2, 2)
    assert torch_private.unwrapped(torch.compile(module, backend="eager")) is module
    assert torch_private.unwrapped(module) is module
    assert isinstance(torch_private.unwrapped(nn.Sequential(module)), nn.Sequential)


def checkpointed_module_holds_the_original():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    module = nn.Linear(2, 2)
    assert torch_private.unwrapped(checkpoint_wrapper(module)) is module


def groups_of_one():
    from datetime import timedelta

    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=41))
    try:
        torch_private.default_store().set("key", "value")
        assert torch_private.default_store().get("key") == b"value"
        assert torch_private.timeout_of(dist.group.WORLD, "cpu") == timedelta(seconds=41)
        assert torch_private.timeout_of(dist.group.WORLD, "meta") is None
        group = torch_private.local_gloo_group([0], "control", timedelta(seconds=42))
        assert torch_private.timeout_of(group, "cpu") == timedelta(seconds=42)
        assert dist.get_process_group_ranks(group) == [0]
        dist.barrier(group)
        torch_private.set_timeout(dist.group.WORLD, timedelta(seconds=43))
        assert torch_private.timeout_of(dist.group.WORLD, "cpu") == timedelta(seconds=43)
    finally:
        dist.destroy_process_group()


def backward_numbers():
    parameter = nn.Parameter(torch.ones(1))
    seen = []
    parameter.register_post_accumulate_grad_hook(lambda _: seen.append(torch_private.backward_number()))
    for _ in range(2):
        (parameter * 2).sum().backward()
    assert torch_private.backward_number() == -1
    assert len({-1, *seen}) == 3


def end_of_backward():
    one, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    seen = []

    def later(_):
        torch_private.after_backward(lambda: seen.append((one.grad is not None, other.grad is not None)))

    one.register_post_accumulate_grad_hook(later)
    (one * other.exp().exp()).sum().backward()
    assert seen == [(True, True)]


def norm_function():
    cell = torch_private.total_norm_cell()
    present = cell.cell_contents
    parameter = nn.Parameter(torch.ones(4))
    parameter.grad = torch.ones(4)
    seen = []
    cell.cell_contents = lambda grads, *_: seen.extend(grads) or torch.tensor(4.0)
    try:
        torch.nn.utils.clip_grad_norm_([parameter], 2.0)
        assert float(get_total_norm([torch.ones(1)])) == 4.0
    finally:
        cell.cell_contents = present
    assert seen == [parameter.grad, torch.ones(1)]
    assert torch.allclose(parameter.grad, torch.tensor(0.5))
    assert float(torch.nn.utils.clip_grad_norm_([parameter], 2.0)) == pytest.approx(1.0)


def overflow_flags():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    (scaler.scale(parameter.sum()) * float("inf")).backward()
    scaler.unscale_(optimizer)
    (flag,) = torch_private.found_infs(scaler, optimizer)
    assert float(flag) == 1.0
    flag.zero_()
    scaler.step(optimizer)
    assert not torch.isfinite(parameter).any()  # the flag alone decides


def scaling_in_a_fused_step():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    assert getattr(optimizer, torch_private.SCALES_IN_STEP)
    setattr(optimizer, torch_private.SCALES_IN_STEP, False)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(parameter.sum()).backward()
    scaler.step(optimizer)
    assert parameter.grad.tolist() == [1.0, 1.0]  # unscaled before the step


TORCH = {
    "Optimizer._step_supports_amp_scaling": scaling_in_a_fused_step,
    "torch._dynamo.eval_frame.compile_wrapper": compiled_call_in_the_stack,
    "torch._dynamo.eval_frame.OptimizedModule._orig_mod": compiled_module_holds_the_original,
    "ActivationWrapper._checkpoint_wrapped_module": checkpointed_module_holds_the_original,
    "distributed_c10d._get_default_store": groups_of_one,
    "distributed_c10d._set_pg_timeout": groups_of_one,
    "ProcessGroup._get_backend": groups_of_one,
    "distributed_c10d._new_process_group_helper": groups_of_one,
    "distributed_c10d._world": groups_of_one,
    "torch._C._current_graph_task_id": backward_numbers,
    "torch.autograd.Variable._execution_engine": end_of_backward,
    "torch.nn.utils.clip_grad._get_total_norm": norm_function,
    "GradScaler._per_optimizer_states": overflow_flags,
    "torch._assert_async": asserted,
    "nn.Module._parameters": lambda: module_dicts("_parameters"),
    "nn.Module._buffers": lambda: module_dicts("_buffers"),
    "nn.Module._modules": lambda: module_dicts("_modules"),
    "nn.Module._forward_hooks": lambda: hooks("_forward_hooks"),
    "nn.Module._forward_hooks_with_kwargs": lambda: hooks("_forward_hooks_with_kwargs"),
    "nn.Module._forward_pre_hooks": lambda: hooks("_forward_pre_hooks"),
    "nn.Module._forward_pre_hooks_with_kwargs": lambda: hooks("_forward_pre_hooks_with_kwargs"),
    "nn.Module._backward_hooks": lambda: backward_hooks("_backward_hooks"),
    "nn.Module._backward_pre_hooks": lambda: backward_hooks("_backward_pre_hooks"),
    **dict.fromkeys(
        [name for name in torch_private.PRIVATE_NAMES if name.startswith("torch.nn.modules.module._global")],
        hooks_of_all_modules,
    ),
    "Tensor._backward_hooks": hooks_of_tensors,
    "Tensor._post_accumulate_grad_hooks": hooks_of_tensors,
    "Tensor._make_subclass": tensor_subclass,
    "torch._C.DisableTorchFunctionSubclass": tensor_subclass,
    "nn.Module._call_impl": call_methods,
    "nn.Module._wrapped_call_impl": call_methods,
    "nn.Module._slow_forward": call_methods,
    "nn.modules.batchnorm._NormBase": batch_norm,
    "UntypedStorage._cdata": storages,
    "Tensor._version": versions,
    "OpOverload._schema": schemas,
    "torch.nn.init._no_grad_trunc_normal_": truncated_normal,
    "torch.utils._python_dispatch.TorchDispatchMode": dispatch_mode,
    "TorchDispatchMode._should_skip_dynamo": dynamo_guard,
    "torch.utils._pytree.tree_leaves": leaves,
    "torch.utils._pytree.tree_map_only": mapped,
    "Module.__class__ assignment": class_assignment,
    "normal_ draws in blocks of 16": blocks_of_normal,
}


@pytest.mark.parametrize("name", torch_private.PRIVATE_NAMES)
def test_a_private_name_of_torch_does_what_the_runtime_takes_it_to_do(name):
    TORCH[name]()


def test_a_changed_behaviour_fails_its_test(monkeypatch):
    monkeypatch.setattr(torch_private, "NORMAL_BLOCK", 5)
    with pytest.raises(AssertionError):
        TORCH["normal_ draws in blocks of 16"]()
