"""Every collective of the runtime goes through one function, which records it by name and explains its failure."""

import ast

import pytest

from support.paths import ROOT

RUNTIME = ROOT / "runtime" / "tpinit" / "runtime"
COLLECTIVES = {
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all", "barrier", "broadcast",
    "broadcast_object_list", "gather", "gather_object", "irecv", "isend", "monitored_barrier", "new_group", "recv",
    "reduce", "reduce_scatter", "reduce_scatter_tensor", "scatter", "scatter_object_list", "send",
}  # fmt: skip
# Where torch is asked whether the world works at all: the error there is a DeviceError about the backend.
# The command's own program waits at a few points of its start and end, as a user's program does.
ALLOWED = {"groups/device_check.py", "finetune/tune.py"}


def direct_calls(source):
    """Return the collectives of torch.distributed that a source calls itself."""
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.distributed")
        for alias in node.names
        if alias.name in COLLECTIVES
    }
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    of_module = [
        func.attr
        for func in called
        if isinstance(func, ast.Attribute)
        and func.attr in COLLECTIVES
        and ast.unparse(func.value) in ("dist", "torch.distributed", "distributed_c10d")
    ]
    return sorted([*of_module, *(func.id for func in called if isinstance(func, ast.Name) and func.id in imported)])


def test_no_module_calls_torch_distributed_itself():
    found = {str(path.relative_to(RUNTIME)): direct_calls(path.read_text()) for path in sorted(RUNTIME.rglob("*.py"))}
    found = {path: calls for path, calls in found.items() if calls}
    assert set(found) == ALLOWED, "call tpinit.runtime.groups.issuing.collective, with a name for errors"


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed as dist\ndist.all_reduce(x, group=g)",
        "import torch\ntorch.distributed.barrier()",
        "from torch.distributed import all_gather as gather\ngather(parts, x)",
    ],
)
def test_a_direct_call_is_found(source):
    assert len(direct_calls(source)) == 1
