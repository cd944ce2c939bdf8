"""Parameters of sharded features train, save and generate as in the unsharded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_ia3_at_its_default_modules_is_exact(world2: Any, tmp_path: Path, sequence_parallel: bool) -> None:
    for result in world2.run(
        "scenarios.feature_parameters:ia3", folder=str(tmp_path), sequence_parallel=sequence_parallel
    ):
        assert max(result["gaps"].values()) < 1e-5, result["gaps"]
        assert result["moved"] > 1e-4  # the vectors are trained
        assert result["tokens"]
        assert result["names"]
        assert result["sharded"] == 12  # two layers: k, v and down, of two adapters
        assert result["in_step"]
