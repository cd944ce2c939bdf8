"""Search finds what the vectors do not, shrinks it, and makes it a vector that finds it again."""

import json

import pytest
from hypothesis import given, settings
from tpinit.conformance import vector_files
from tpinit.conformance.adapters import opener
from tpinit.conformance.adapters.inprocess import CallableAdapter
from tpinit.conformance.miniatures.answering import MAGIC, always_right
from tpinit.conformance.protocol import Broken
from tpinit.conformance.report import CaseStatus, exit_code
from tpinit.conformance.runner import RunOptions, conform
from tpinit.conformance.search import BOUNDARIES, families, search
from tpinit.conformance.vectors import input_of, load, to_inputs

MINIATURES = "py: tpinit.conformance.miniatures."


def looked(name, **options):
    return search(opener(f"{MINIATURES}{name}", in_process=True), **options)


def test_one_magic_integer_is_found_shrunk_and_kept(tmp_path):
    run = opener(f"{MINIATURES}answering:wrong_in_one_integer", in_process=True)
    assert exit_code(conform(run, load(), RunOptions(passes=1))) == 0  # the vectors do not have it
    made = search(run, examples=20_000, most=1)
    ((vector, case),) = made.found
    assert case.verdict is CaseStatus.DISAGREED
    assert MAGIC in (vector.input["call"] or vector.input["section"]).values()
    assert vector.input["precision"] is None
    assert len(vector.input["groups"]) < 2
    path = tmp_path / "found.jsonl"
    vector_files.write([vector], path)
    again = vector_files.read(path)
    assert again == (vector,)
    assert exit_code(conform(run, again)) == 1
    assert exit_code(conform(opener("reference"), again)) == 0


def test_nothing_is_found_where_nothing_is_wrong():
    made = looked("answering:always_right", examples=200)
    assert made.found == ()
    assert made.asked > 100


def test_a_declared_choice_is_not_found_and_a_secret_one_is():
    assert looked("answering:permissive", examples=200).found == ()
    assert len(looked("answering:permissive", examples=200, choices=False, most=1).found) == 1
    found = looked("answering:permissive_in_secret", examples=200, most=1).found
    assert found[0][0].row in (1, 5)


def test_the_same_search_finds_the_same():
    first, second = (looked("answering:always_wrong", examples=60, most=2, seed=5).found for _ in range(2))
    assert [vector.id for vector, _ in first] == [vector.id for vector, _ in second]
    assert first[0][0].input["world_size"] == 1


def test_what_is_wrong_once_only_is_unstable():
    asked = []

    def answer(case):
        asked.append(json.dumps(case, sort_keys=True))
        right = always_right(case)
        return right if asked.count(asked[-1]) > 1 else {**right, "row": right["row"] % 12 + 1}

    made = search(lambda: CallableAdapter(answer), examples=40, most=1)
    assert [case.verdict for _, case in made.found] == [CaseStatus.UNSTABLE]
    assert "asked again" in made.found[0][1].detail


def test_who_does_not_start_is_broken_also_here():
    with pytest.raises(Broken, match="a dialect that does not exist"):
        looked("answering:SpeaksAnything", examples=5)


@settings(max_examples=150, deadline=None)
@given(families())
def test_whatever_is_asked_is_the_input_of_a_vector(family):
    for inputs in family:
        case = input_of(inputs)
        made = vector_files.vector_from_case(case, "FLAG", "effect")
        assert input_of(to_inputs(made.input)) == case
        assert made.expected["row"] == made.row
    assert len(family) == 1 or len(family) > len(BOUNDARIES) // 8


def test_an_id_depends_on_the_input_alone():
    case = load(smoke=True)[0].input
    reordered = dict(reversed(list(case.items())))
    assert vector_files.vector_from_case(case, "A", "a").id == vector_files.vector_from_case(reordered, "B", "b").id


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda line: line[:-5], ":1: not JSON"),
        (lambda line: "", "no vectors"),
        (lambda line: line + "\n" + line, "occur twice"),
        (lambda line: json.dumps([]), "keys"),
        (lambda line: json.dumps({**json.loads(line), "id": "A B"}), "not an id"),
        (lambda line: json.dumps({**json.loads(line), "row": 2}), "row"),
        (lambda line: json.dumps({**json.loads(line), "input": {}}), "world_size"),
        (lambda line: json.dumps({**json.loads(line), "why": None}), "why"),
    ],
)
def test_a_malformed_file_is_told_with_its_line(tmp_path, change, word):
    path = tmp_path / "vectors.jsonl"
    path.write_text(change(json.dumps(load(smoke=True)[0].to_json())))
    with pytest.raises(vector_files.VectorFileError, match=word):
        vector_files.read(path)
