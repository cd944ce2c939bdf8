"""Files of vectors: a difference is named, and what is written is read back the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tpinit.conformance.vectors import (
    MalformedInput,
    answer_of,
    input_of,
    load,
    manifest,
    to_inputs,
)
from tpinit.proofs.vectors import generating
from tpinit.proofs.vectors.generating import check, committed, hash_of, spec_hash
from tpinit.reference.resolver import resolve
from tpinit.spec.vocabulary import Call, DType, Inputs

VECTORS = load()
MANIFEST = manifest()


# --- checking files ------------------------------------------------------------------------------------


def changed(name, change):
    texts = committed()
    return texts | {name: change(texts[name])}


def first_line_dropped(text):
    return text.partition("\n")[2]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (changed("vectors.jsonl", lambda t: t.replace('"smoke": true', '"smoke": false', 1)), "differs in smoke"),
        (changed("vectors.jsonl", lambda t: t.replace("NO_TP_INTENT", "NO_GROUP_SOURCE", 1)), "differs in expected"),
        (changed("vectors.jsonl", first_line_dropped), f"{VECTORS[0].id}: is not committed"),
        (
            changed("vectors.jsonl", lambda t: t + '{"id": "r01-more"}\n'),
            "r01-more: is committed, and no longer generated",
        ),
        (changed("vectors.jsonl", lambda t: t + "{\n"), "line 1599 of vectors.jsonl, which is not a vector"),
        (changed("manifest.json", lambda t: t.replace(spec_hash(), "0" * 64)), "spec: the spec has changed"),
        (
            changed("manifest.json", lambda t: t.replace('"0000000000": "r01', '"0000000000": "r02')),
            "families: differs",
        ),
        (changed("manifest.json", lambda _: "{"), "manifest.json: is missing, or not JSON"),
        (changed("manifest.json", lambda _: "[]"), "manifest.json: format: differs"),
        (changed("vector.schema.json", lambda t: t.replace('"maximum": 12', '"maximum": 13')), "vector.schema.json"),
        (changed("vector.schema.json", lambda t: t + "\n"), "vector.schema.json"),
        (changed("vectors.jsonl", lambda t: t.replace(", ", ",", 1)), "layout only"),
        ({}, "is not committed"),
    ],
)
def test_a_difference_is_told(generated, texts, said):
    assert said in "\n".join(check(generated, texts))


def test_files_that_are_written_are_read_back_the_same(generated, tmp_path):
    generating.write(generated, tmp_path)
    assert {path.name: path.read_bytes().decode() for path in tmp_path.iterdir()} == committed()


def test_the_hash_sees_the_source_and_not_its_line_ends():
    assert MANIFEST["spec"]["sha256"] == spec_hash()
    one = hash_of({"table.py": "a = 1\nb = 2\n"})
    assert hash_of({"table.py": "a = 1  \r\nb = 2\r\n"}) == one
    assert len({one, hash_of({"prose.py": "a = 1\nb = 2\n"}), hash_of({"table.py": "a = 1\nb = 3\n"})}) == 3


# --- loading -------------------------------------------------------------------------------------------


def test_a_vector_that_somebody_changed_is_loaded_unchanged():
    load()[0].input["world_size"] = 99
    assert load()[0].input["world_size"] != 99


def test_inputs_and_their_json_are_the_same_thing():
    for vector in VECTORS:
        assert input_of(to_inputs(vector.input)) == vector.input


def test_the_same_handle_is_the_same_object_and_keeps_its_name():
    case = {
        "world_size": 4,
        "groups": {"other": 2, "g1": 2},
        "call": {"tp_size": 2, "dtype": "bf16", "tp_group": "g1"},
        "section": {"autotp_size": None, "tp_size": None, "dtype": None, "tp_group": "g1"},
        "precision": None,
        "mpu": None,
        "mesh": "other",
    }
    inputs = to_inputs(case)
    assert inputs.call.tp_group == inputs.section.tp_group != inputs.mesh
    assert inputs.call.tp_group.handle == "g1"
    alone = resolve(replace(inputs, mesh=None))
    assert answer_of(alone, case["groups"])["tp_group"] == {"value": "g1", "source": "call.tp_group"}
    with pytest.raises(ValueError, match="not one of the groups"):
        answer_of(alone, {"other": 2})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda case: case.pop("mesh"), "no 'mesh'"),
        (lambda case: case.update(mesh="g9"), "no 'g9'"),
        (lambda case: case.update(precision="int8"), "int8"),
        (lambda case: case.update(world_size=0), "at least 1 rank"),
        (lambda case: case.update(world_size="4"), "str"),
        (lambda case: case.update(call=3), "subscriptable"),
        (lambda case: case.update(groups=None), "None"),
    ],
)
def test_a_malformed_input_is_told(spoil, said):
    case = input_of(Inputs(4, Call(2, DType.BF16)))
    spoil(case)
    with pytest.raises(MalformedInput, match=said):
        to_inputs(case)
