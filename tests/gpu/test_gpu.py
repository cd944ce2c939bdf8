"""Every scenario in every world that the GPUs of this host allow."""

from __future__ import annotations

from typing import Any

import pytest

from gpu.judging import SCENARIOS, judge

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_on_gpus(gpu_world: Any, scenario: str) -> None:
    kind, world, covered = gpu_world
    function, arguments = SCENARIOS[scenario]
    results = world.run(f"gpu.scenarios:{function}", timeout=120, kind="cuda", **arguments)
    judge(scenario, results, "cuda", exclusive=kind.gpus == kind.ranks)
    covered.append(scenario)
