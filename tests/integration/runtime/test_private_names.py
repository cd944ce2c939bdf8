"""No module of the runtime but `internals` uses a private name of torch or transformers."""

import ast
import pathlib

import pytest
from tpinit.runtime.internals import torch_private, transformers_private

RUNTIME = pathlib.Path(torch_private.__file__).parents[1]


# --- nowhere else ----------------------------------------------------------------------------------------


def own_names(trees):
    """Return the names that the runtime defines itself: functions, classes, fields and attributes of self."""
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                found.add(node.attr)
        elif isinstance(node, (ast.AnnAssign, ast.Assign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return found


def private_uses(tree, own):
    """Yield (line, name) for each private name that the code uses and the runtime does not define."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not of_self and node.attr not in own:
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith(("__", "tpinit")):
            private = [part for part in node.module.split(".") if part.startswith("_")]
            yield from ((node.lineno, part) for part in private)
            yield from ((node.lineno, one.name) for one in node.names if one.name.startswith("_"))
        elif isinstance(node, ast.Constant) and is_private_string(node.value) and node.value not in own:
            yield node.lineno, node.value


def is_private_string(value):
    return isinstance(value, str) and value.startswith("_") and not value.startswith("__") and value.isidentifier()


# Names with an underscore that are no attribute of torch or transformers: an aten operator, ours, DeepSpeed's.
STRINGS = {
    "_unsafe_view",
    "_to_copy",
    "_proj",
    "_tp_held",
    "_name_or_path",
    "_token_id",
    "_token_index",
    "_consolidated_16bit_state_dict",
    "_global_grad_norm",
    "_zero3_consolidated_16bit_state_dict",
}


def found_in(files):
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    names = [*torch_private.PRIVATE_NAMES, *transformers_private.PRIVATE_NAMES]
    own = own_names(trees.values()) - set(torch_private.empty_module_state()) - {one.split(".")[-1] for one in names}
    return [
        f"{file.name}:{line} {name}"
        for file, tree in trees.items()
        if file.parent.name != "internals"
        for line, name in private_uses(tree, own)
        if name not in STRINGS
    ]


def test_no_other_module_of_the_runtime_uses_a_private_name():
    files = sorted(RUNTIME.rglob("*.py"))
    assert len(files) > 60
    assert found_in(files) == []


@pytest.mark.parametrize(
    "line",
    [
        "module._buffers",
        "tensor.untyped_storage()._cdata",
        "from torch.utils._pytree import tree_leaves",
        "from torch.nn.modules.batchnorm import _NormBase",
        "getattr(model, '_tp_plan', None)",
    ],
)
def test_a_private_name_elsewhere_is_found(tmp_path, line):
    file = tmp_path / "planted.py"
    file.write_text(f"def f(module, tensor, model):\n    {line}\n", encoding="utf-8")
    assert found_in([*sorted(RUNTIME.rglob("*.py")), file])[-1].startswith("planted.py:2")
