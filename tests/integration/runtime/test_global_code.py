"""Functions that are replaced after `initialize` are found wherever the forward of a model looks them up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn import functional
from tpinit.runtime.planning.analysis.global_code import GlobalCode
from tpinit.runtime.planning.analysis.known_code import look_once, unknown_code
from transformers import AttentionInterface
from transformers.integrations import sdpa_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

from support.tiny_models import build


def own(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, **kwargs)


@contextmanager
def replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    present, old = name in vars(owner), getattr(owner, name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, old) if present else delattr(owner, name)


PLACES = [
    (functional, "silu"),
    (functional, "scaled_dot_product_attention"),
    (torch, "matmul"),
    (torch, "einsum"),
    (torch.Tensor, "softmax"),
    (torch.Tensor, "__mul__"),
    (modeling_llama, "apply_rotary_pos_emb"),
    (modeling_llama, "eager_attention_forward"),
    (sdpa_attention, "sdpa_attention_forward"),
    (sdpa_attention, "repeat_kv"),
]


@pytest.mark.parametrize(("owner", "name"), PLACES, ids=lambda one: getattr(one, "__name__", one))
def test_a_replaced_function_is_found(owner: Any, name: str) -> None:
    functions = GlobalCode(build())
    with replaced(owner, name, own(getattr(owner, name))):
        found = list(functions.changes())
    assert [place.rpartition(".")[2] for place, _ in found] == [name]
    assert "do it before initialize" in found[0][1]
    assert list(functions.changes()) == []


def test_a_start_looks_at_the_code_of_a_model_once() -> None:
    """Within the context what was found stays, and the next start sees what is there then."""
    model = build()
    with look_once():
        assert unknown_code(model) is None
        with replaced(functional, "silu", own(functional.silu)):
            assert unknown_code(model) is None
            assert "silu" in str(unknown_code(build())), "another model is looked at"
    with replaced(functional, "silu", own(functional.silu)):
        assert "silu" in str(unknown_code(model))


def test_a_function_that_is_gone_is_found() -> None:
    functions = GlobalCode(build())
    kept = modeling_llama.rotate_half
    del modeling_llama.rotate_half
    try:
        assert [place for place, _ in functions.changes()] == [f"{modeling_llama.__name__}.rotate_half"]
    finally:
        modeling_llama.rotate_half = kept


def test_a_function_that_another_one_of_the_libraries_replaces_counts_as_the_same() -> None:
    functions = GlobalCode(build())
    with replaced(functional, "silu", functional.gelu), replaced(modeling_llama, "repeat_kv", sdpa_attention.repeat_kv):
        assert list(functions.changes()) == []


def test_how_a_tensor_is_shown_may_change() -> None:
    functions = GlobalCode(build())
    with replaced(torch.Tensor, "__repr__", own(torch.Tensor.__repr__)):
        assert list(functions.changes()) == []


def test_a_function_of_ones_own_that_planning_saw_must_stay() -> None:
    with replaced(functional, "silu", own(functional.silu)):
        functions = GlobalCode(build())
        assert list(functions.changes()) == []
    assert [place for place, _ in functions.changes()] == ["torch.nn.functional.silu"]


def test_an_entry_of_a_registry_is_found() -> None:
    functions = GlobalCode(build())
    ALL_ATTENTION_FUNCTIONS["sdpa"] = own(ALL_ATTENTION_FUNCTIONS["sdpa"])
    try:
        assert [place.rpartition(".")[2] for place, _ in functions.changes()] == ["ALL_ATTENTION_FUNCTIONS['sdpa']"]
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert list(functions.changes()) == []


def test_an_attention_of_ones_own_is_found_when_the_model_takes_it() -> None:
    model = build()
    functions = GlobalCode(model)
    AttentionInterface.register("of_a_test", own(ALL_ATTENTION_FUNCTIONS["sdpa"]))
    try:
        assert list(functions.changes()) == []  # of another model, perhaps
        model.set_attn_implementation("of_a_test")
        assert [place.rpartition(".")[2] for place, _ in functions.changes()] == [
            "ALL_ATTENTION_FUNCTIONS['of_a_test']"
        ]
        model.set_attn_implementation("eager")
        assert list(functions.changes()) == []
    finally:
        AttentionInterface._global_mapping.pop("of_a_test")


def test_what_torch_compile_leaves_in_a_module_is_no_code_of_anybodys() -> None:
    model = build()
    functions = GlobalCode(model)
    namespace = vars(modeling_llama)
    left = {"__compiled_fn_3_of_a_test": own(len), "__resume_at_8_of_a_test": own(len)}
    namespace.update(left)
    try:
        assert unknown_code(model) is None
        assert list(functions.changes()) == []
        namespace["compiled_fn_of_a_test"] = left["__resume_at_8_of_a_test"]
        assert "compiled_fn_of_a_test" in str(unknown_code(model))
    finally:
        for name in (*left, "compiled_fn_of_a_test"):
            namespace.pop(name, None)
