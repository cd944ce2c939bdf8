"""Lines of JSONL: the forms that are accepted, and one error for each line that is not."""

from __future__ import annotations

import json

import pytest
from tpinit.runtime import DataError
from tpinit.runtime.finetune.lines import LineFile

from support.tuning import write_jsonl

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}

BAD = {
    "not json": "is not JSON: Expecting value at column 1",
    '{"text": "a"': "is not JSON",
    "[1]": "is [1], and must be an object with",
    "{}": 'has none of the keys "text"',
    '{"txt": "a"}': "did you mean 'text'?",
    '{"text": "a", "messages": []}': "has 'text' and 'messages': keep one",
    '{"text": "a", "text": "b"}': "has the key 'text' twice",
    '{"text": ""}': "text is empty",
    '{"text": null}': "text is null, and must be a text",
    '{"text": "\\ud800"}': "half of a character",
    '{"prompt": "a"}': "has no 'completion'",
    '{"prompt": "a", "completion": ""}': "completion is empty",
    '{"prompt": "a", "completion": [1]}': "completion is [1], and must be a text; prompt and completion may also both",
    '{"messages": []}': "messages is [], and must be a list of messages",
    '{"messages": ["a"]}': "messages[0] is",
    '{"messages": [{"role": "user", "content": [1]}]}': "messages[0].content is [1]",
    "[" * 100000: "nested too deeply",
    f'{{"text": {"1" * 5000}}}': "can't be read",
}


def test_every_form_is_read(tmp_path):
    pages = (
        {"text": "a", "id": 1},
        {"prompt": "", "completion": "b"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"messages": [USER, ANSWER], "id": 2, "source": "x"},
    )
    file = LineFile(write_jsonl(tmp_path / "a.jsonl", "\ufeff" + json.dumps(pages[0]), "", *pages[1:]))
    lines = list(file)
    assert [(line.number, line.form) for line in lines] == [(1, "text"), (3, "pair"), (4, "pair"), (5, "messages")]
    assert lines[3].completion == [USER, ANSWER]
    assert file.ignored == {"id": 2, "source": 1}
    assert file.problems == []


def test_every_bad_line_is_named_with_its_number(tmp_path):
    file = LineFile(write_jsonl(tmp_path / "a.jsonl", {"text": "good"}, *BAD, {"text": "good"}))
    assert len(list(file)) == 2
    assert [number for number, _ in file.problems] == list(range(2, len(BAD) + 2))
    for (_, text), words in zip(file.problems, BAD.values(), strict=True):
        assert words in text
        assert len(text) < 400
    with pytest.raises(DataError, match=rf"{len(BAD)} of {len(BAD) + 2} lines can't be used:\n  line 2: is not JSON"):
        file.check()


def test_files_that_are_no_lines(tmp_path):
    (tmp_path / "gz").write_bytes(b"\x1f\x8b\x08\x00\xff")
    with pytest.raises(DataError, match="line 1: byte 2 is not UTF-8"):
        LineFile(tmp_path / "gz").check()
    with pytest.raises(DataError, match="has no lines"):
        LineFile(write_jsonl(tmp_path / "empty", "", " ")).check()
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="can't be read"):
            LineFile(path).check()


def test_many_bad_lines_are_counted(tmp_path):
    with pytest.raises(DataError, match=r"line 20: .*\n  and 10 more"):
        LineFile(write_jsonl(tmp_path / "a", *["{"] * 30)).check()
