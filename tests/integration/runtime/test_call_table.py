"""Every public name of a sharded model, its engine, optimizer and scheduler is in a table that the docs show."""

from __future__ import annotations

import collections
import pathlib

import peft
import pytest
import torch
import transformers
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from tpinit.runtime.training import call_table
from tpinit.runtime.training.call_table import TABLES, Answer, answer_of
from tpinit.runtime.training.engine import Engine

DOCUMENT = pathlib.Path(__file__).parents[3] / "docs" / "calls.md"
BEGIN, END = "<!-- tables of training/call_table.py -->\n", "<!-- end of the tables -->\n"
MODELS = (
    transformers.PreTrainedModel,
    transformers.LlamaForCausalLM,
    transformers.MixtralForCausalLM,
    transformers.T5ForConditionalGeneration,
    transformers.GPT2LMHeadModel,
    transformers.BertForMaskedLM,
)


def public(*kinds: type) -> set[str]:
    return {name for kind in kinds for name in dir(kind) if not name.startswith("_")}


MODULE = public(nn.Module)
CASES = {
    "torch.nn.Module": (MODULE, ()),
    "transformers": (public(*MODELS) - MODULE, ()),
    "peft": (public(peft.PeftModel, peft.PeftModelForCausalLM, BaseTuner) - MODULE, ("transformers",)),
    "the optimizer": (public(torch.optim.Optimizer), ()),
    "the scheduler": (public(torch.optim.lr_scheduler.LRScheduler), ()),
    "the engine": (set(Engine.__dir__(Engine.__new__(Engine))) - {"_"}, ("torch.nn.Module",)),
}


def unknown(names: set[str], tables: tuple[str, ...]) -> list[str]:
    return sorted(name for name in names if answer_of(name, *map(TABLES.__getitem__, tables)) is None)


def test_every_table_is_held_to_its_class() -> None:
    assert list(CASES) == list(TABLES)


@pytest.mark.parametrize("title", CASES)
def test_every_public_name_has_an_answer(title: str) -> None:
    names, others = CASES[title]
    found = unknown({name for name in names if not name.startswith("_")}, (title, *others))
    assert not found, (
        f"{', '.join(found)}: new in this release of torch, transformers or peft. Find out what it gives on a sharded "
        f"model, refuse it if it is a part, and add it to the table {title!r} of training/call_table.py"
    )


def test_an_unknown_name_is_found() -> None:
    assert unknown({"forward", "shard_again"}, ("torch.nn.Module",)) == ["shard_again"]


@pytest.mark.parametrize("title", TABLES)
def test_a_name_has_one_row(title: str) -> None:
    counted = collections.Counter(name for call in TABLES[title] for name in call.names)
    assert [name for name, count in counted.items() if count > 1] == []
    assert [call.names for call in TABLES[title] if call.answer is not Answer.RIGHT and not call.remark] == []


def test_the_page_shows_the_tables() -> None:
    page = DOCUMENT.read_text(encoding="utf-8")
    shown = page.partition(BEGIN)[2].partition(END)[0]
    assert shown == call_table.markdown(), f"put what call_table.markdown() returns between {BEGIN!r} and {END!r}"
