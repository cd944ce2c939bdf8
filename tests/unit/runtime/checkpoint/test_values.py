"""Values survive a checkpoint, and what would need pickle is refused by its place."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from pathlib import Path

import numpy
import pytest
import torch
from tpinit.runtime import CheckpointError
from tpinit.runtime.checkpoint.folders import check_tag
from tpinit.runtime.checkpoint.values import decode, encode

VALUES = [
    None,
    True,
    -3,
    1.5,
    math.inf,
    "text",
    b"\0\xff",
    [1, [2.5]],
    (1, ("a",)),
    {"a": {1: (2,)}, 3: None},
    {1, 2},
    Counter({5: 2}),
    argparse.Namespace(lr=0.1, names=["x"]),
    torch.bfloat16,
]


def through(value):
    return decode(json.loads(json.dumps(encode(value, "value"))))


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_a_value_is_read_as_it_was(value):
    assert through(value) == value
    assert type(through(value)) is type(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_a_tensor_is_read_as_it_was(dtype):
    for value in (torch.ones(2, 0, 3), torch.tensor(1.0), torch.arange(6).view(2, 3).t()):
        found = through(value.to(dtype))
        assert torch.equal(found, value.to(dtype))
        assert found.dtype == dtype


def test_numpy_values_become_numbers_and_tensors():
    assert through(numpy.int64(3)) == 3
    assert through(numpy.float32(0.5)) == 0.5
    assert torch.equal(through(numpy.arange(3)), torch.arange(3))
    assert math.isnan(through(math.nan))


@pytest.mark.parametrize(
    "value", [object(), Path, lambda: 0, torch.nn.Linear(1, 1)], ids=["object", "class", "lambda", "module"]
)
def test_what_would_need_pickle_is_refused_by_its_place(value):
    with pytest.raises(CheckpointError, match=r"client_state\.a\[1\] is a "):
        encode({"a": [0, value]}, "client_state")


@pytest.mark.parametrize(
    "page",
    [
        {"eval": "1"},
        {"dict": 3},
        {"a": 1, "b": 2},
        {"tensor": ["float32", [2], "AAAA"]},
        {"dtype": "load"},
        {"set": [[]]},
    ],
    ids=str,
)
def test_other_json_is_refused(page):
    with pytest.raises(CheckpointError, match="a value of the checkpoint"):
        decode(page)


@pytest.mark.parametrize("tag", ["", ".", "..", "a/b", "/a", "a\\b", ".a", "latest", "a\n", " a", "x" * 300, "a\0"])
def test_a_tag_is_the_name_of_one_folder(tag):
    with pytest.raises(CheckpointError, match="can't be the name of a checkpoint"):
        check_tag(tag)
    assert check_tag("global_step12") == "global_step12"
