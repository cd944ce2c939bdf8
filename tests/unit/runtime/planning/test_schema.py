"""The records of a plan, and the page that describes them."""

import dataclasses
import pathlib
import re

import pytest
from tpinit.runtime.planning.schema import BlockPlan, LayerPlan, ParameterPlan, SequencePlan

PAGE = pathlib.Path(__file__).parents[4] / "docs" / "plan.md"
RECORDS = {"parameters": ParameterPlan, "layers": LayerPlan, "blocks": BlockPlan, "sequences": SequencePlan}


def described(page: str, key: str) -> set[str]:
    """Return the names in the first column of the table of one list of records."""
    table = page.split(f"| `{key}` | Meaning |")[1].split("\n\n")[0]
    return {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1] if row else "")}


def undescribed(page: str, key: str) -> set[str]:
    return {field.name for field in dataclasses.fields(RECORDS[key])} - described(page, key)


@pytest.mark.parametrize("key", RECORDS)
def test_the_page_describes_every_field_of_a_record_and_no_other(key):
    page = PAGE.read_text(encoding="utf-8")
    assert not undescribed(page, key)
    computed = {"pieces", "local_shape"} if key == "parameters" else set()
    assert described(page, key) - computed <= {field.name for field in dataclasses.fields(RECORDS[key])}


def test_a_field_that_the_page_leaves_out_is_found():
    page = PAGE.read_text(encoding="utf-8").replace("| `scatter_output` |", "| |")
    assert undescribed(page, "layers") == {"scatter_output"}
