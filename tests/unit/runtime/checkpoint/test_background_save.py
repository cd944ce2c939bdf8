"""A save in the background keeps its error until somebody waits for it."""

from __future__ import annotations

import pytest
from tpinit.runtime.checkpoint.save import BackgroundSave
from tpinit.runtime.errors import CheckpointError


def fail(error: Exception) -> None:
    raise error


def test_the_error_is_raised_once() -> None:
    save = BackgroundSave(lambda: fail(CheckpointError("a full disk")))
    with pytest.raises(CheckpointError, match=r"^a full disk$"):
        save.wait()
    save.wait()
    BackgroundSave(lambda: None).wait()


def test_a_world_that_was_destroyed_while_it_ran_is_named() -> None:
    """As is true here, where no world was started."""
    save = BackgroundSave(lambda: fail(TypeError("value was None")))
    with pytest.raises(CheckpointError, match=r"TypeError: value was None; .* call engine\.destroy\(\) first"):
        save.wait()
