"""Switch off what an engine finds out by itself, for controls that break a run and must be seen by a comparison."""

from __future__ import annotations

from typing import Any


def switch_off(engine: Any) -> None:
    """Let the engine run a model that was changed, and update with whatever gradients it has."""
    engine._must_skip = lambda _: False
    let_change(engine)


def let_change(engine: Any) -> None:
    """Let the model of an engine be changed after `initialize`: what other guards find out is tested then."""
    engine._call_check.tree = None
    if engine._first_step is not None:
        engine._first_step.stop()
