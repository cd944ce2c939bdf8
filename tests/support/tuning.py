"""What tests of fine-tuning train: the tiny model of examples/tiny_model.py and files of lines."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

from support.paths import ROOT


@cache
def example() -> Any:
    """Return the module examples/tiny_model.py."""
    spec = importlib.util.spec_from_file_location("tiny_model", ROOT / "examples" / "tiny_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_jsonl(path: Path, *pages: Any) -> Path:
    """Write objects as JSON lines; a text is a line as it is."""
    path.write_text("".join(f"{page if isinstance(page, str) else json.dumps(page)}\n" for page in pages))
    return path


def write_tiny(folder: Path) -> tuple[Path, Path]:
    """Write the model, and lines of every form. Return both paths."""
    example().write_model(folder / "model", hidden=32)
    zen = example().zen()
    pairs = [{"prompt": "Next: ", "completion": line} for line in zen[:3]]
    talk = [{"messages": [{"role": "user", "content": "Zen?"}, {"role": "assistant", "content": zen[0]}]}]
    return folder / "model", write_jsonl(folder / "zen.jsonl", *({"text": line} for line in zen), *pairs, *talk)
