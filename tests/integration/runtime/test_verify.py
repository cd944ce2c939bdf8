"""Which models `initialize` probes by default, and the list of those that it does not."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tpinit.reference.errors import TpinitError
from tpinit.runtime import initialize
from tpinit.runtime.init import verify
from tpinit.runtime.init.swept_classes import SWEPT_CLASSES
from tpinit.runtime.init.verify import probe_reason

from families import catalogue

MODELS = Path(__file__).parents[3] / "docs" / "models.md"


def exact(table: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \| [^|]* \| exact", table, re.MULTILINE)


def test_the_list_of_classes_is_that_of_the_page() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    causal, families = MODELS.read_text().split("## Causal language models of the release")[1].split("## Families and")
    names = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name] for name in exact(causal)]
    classes = {name if isinstance(name, str) else name[0] for name in names}
    classes |= {type(catalogue.build(name)).__name__ for name in exact(families)}
    assert classes == SWEPT_CLASSES


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> Any:
        return self.down(self.up(x))


def test_only_models_that_were_not_compared_are_probed_by_default() -> None:
    llama = catalogue.build("llama")
    assert probe_reason(llama, "auto", None) is None
    assert probe_reason(llama, "probe", None) == 'verify is "probe"'
    assert "Own is not among the classes" in str(probe_reason(Own(), "auto", None))
    for off in ("rehearsal", "none", None):
        assert probe_reason(Own(), off, None) is None


def test_a_class_of_the_same_name_and_one_with_other_code_are_probed() -> None:
    llama = catalogue.build("llama")
    llama.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert "code that is not transformers' own" in str(probe_reason(llama, "auto", None))
    other = type("LlamaForCausalLM", (Own,), {"__module__": __name__})()
    assert "LlamaForCausalLM is not among" in str(probe_reason(other, "auto", None))


def test_a_very_large_model_is_not_probed_by_default_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verify, "_AUTO_ELEMENTS", 10)
    with caplog.at_level(logging.WARNING, "tpinit"):
        assert probe_reason(Own(), "auto", None) is None
        assert "too many for a probe by default" in caplog.text
    assert probe_reason(Own(), "probe", None) is not None


def test_another_word_is_refused() -> None:
    with pytest.raises(TpinitError, match='verify is "twice", and must be None or one of auto, probe, rehearsal, none'):
        initialize(model=Own(), config={}, verify="twice")
