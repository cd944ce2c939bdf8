"""torch.compile of a sharded model is right in every form, and refuses one graph."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed


def test_a_compiled_model_trains_as_the_unsharded_one(world2: Any) -> None:
    for result in world2.run("scenarios.compiled:forms", timeout=240):
        assert len(result["results"]) == 12
        assert all(result["results"].values()), result["results"]
        assert result["in_step"]
