"""Tokens and labels: what is trained on in each form, packing, padding, and lines without anything to train on."""

from __future__ import annotations

import pytest
import torch
from tpinit.runtime import DataError
from tpinit.runtime.finetune.lines import LineFile
from tpinit.runtime.finetune.rows import Collate, make_rows

from support.tuning import example, write_jsonl


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("model")
    example().write_model(folder, hidden=16)
    return AutoTokenizer.from_pretrained(folder)


def rows_of(tmp_path, tokenizer, *pages, length=64, pack=False, everything=False, vocabulary=400):
    file = LineFile(write_jsonl(tmp_path / "lines", *pages))
    return make_rows(file, tokenizer, length, pack=pack, everything=everything, vocabulary=vocabulary)


def shown(rows, tokenizer):
    """Each row as (its text, the text of what is trained on)."""
    return [(tokenizer.decode(ids), tokenizer.decode(ids[marks])) for ids, marks in (rows[i] for i in range(len(rows)))]


TALK = {
    "messages": [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "a2"},
    ]
}
WHOLE = "<|user|>q1<|end|><|assistant|>a1<|end|><|user|>q2<|end|><|assistant|>a2<|end|>"


def test_the_answers_are_trained_on(tmp_path, tokenizer):
    later = {"prompt": TALK["messages"][:3], "completion": TALK["messages"][3:]}
    rows = rows_of(tmp_path, tokenizer, {"text": "now"}, {"prompt": "q1", "completion": "a1"}, TALK, later)
    assert shown(rows, tokenizer) == [
        ("now<|end|>", "now<|end|>"),
        ("<|user|>q1<|end|><|assistant|>a1<|end|>", "a1<|end|>"),
        (WHOLE, "a1<|end|>a2<|end|>"),
        (WHOLE, "a2<|end|>"),
    ]
    everything = rows_of(tmp_path, tokenizer, TALK, everything=True)
    assert shown(everything, tokenizer) == [(WHOLE, WHOLE)]


def test_without_a_template_a_pair_is_one_text(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    rows = rows_of(tmp_path, tokenizer, {"prompt": "Now ", "completion": "is better"})
    assert shown(rows, tokenizer) == [("Now is better<|end|>", " is better<|end|>")]  # the token of both parts
    with pytest.raises(DataError, match="line 1: has messages, and the tokenizer has no chat template"):
        rows_of(tmp_path, tokenizer, TALK)


def test_templates_that_refuse_or_change_their_mind(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no ' + messages[0]['role']) }}")
    with pytest.raises(DataError, match=r"line 1: is refused by the tokenizer's chat template: .*no user"):
        rows_of(tmp_path, tokenizer, TALK)
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages | length }}{{ messages[-1]['content'] }}")
    with pytest.raises(DataError, match="line 1: the chat template writes the first 2 messages otherwise"):
        rows_of(tmp_path, tokenizer, TALK)
    assert len(rows_of(tmp_path, tokenizer, TALK, everything=True)) == 1


def test_rows_are_cut_or_packed(tmp_path, tokenizer):
    lines = [{"text": "Sparse is better than dense."}, {"text": "Readability counts.", "id": 1}]
    whole = rows_of(tmp_path, tokenizer, *lines)
    cut = rows_of(tmp_path, tokenizer, *lines, length=11)
    packed = rows_of(tmp_path, tokenizer, *lines, length=8, pack=True)
    assert [len(cut[0][0]), len(cut[1][0])] == [len(whole[0][0]), 11]
    assert cut.notes == (
        "1 of 2 lines are longer than 11 tokens and are cut (--length, --pack)",
        "keys that are not read: id (1 lines)",
    )
    assert torch.equal(packed.tokens, whole.tokens)
    assert {len(packed[i][0]) for i in range(len(packed) - 1)} == {8}
    assert len({whole.digest(), cut.digest(), packed.digest()}) == 3


def test_lines_without_anything_to_train_on_are_named(tmp_path, tokenizer):
    long = {"prompt": "q" * 50, "completion": "a"}
    with pytest.raises(
        DataError, match=r"line 2: its first 20 tokens have none .*the first is token 54: give --length 54"
    ):
        rows_of(tmp_path, tokenizer, {"text": "good"}, long, length=20)
    assert len(rows_of(tmp_path, tokenizer, long, length=54)) == 1
    asked = {"messages": [{"role": "user", "content": "q"}]}
    with pytest.raises(DataError, match="line 1: has no message of the role assistant"):
        rows_of(tmp_path, tokenizer, asked)
    with pytest.raises(DataError, match="line 1: the tokenizer gives token"):
        rows_of(tmp_path, tokenizer, {"text": "good"}, vocabulary=10)
    packed = rows_of(tmp_path, tokenizer, long, {"text": "x" * 20}, length=20, pack=True)
    assert packed.notes == ("2 of 4 rows have no token to train on and are left out",)
    assert all(bool(packed[i][1][1:].any()) for i in range(len(packed)))


def test_a_micro_batch_is_padded(tokenizer):
    rows = [(torch.tensor([5, 6, 7]), torch.tensor([False, True, True])), (torch.tensor([8]), torch.tensor([True]))]
    batch = Collate(0, 4)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100], [8, -100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
