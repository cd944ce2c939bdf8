"""`initialize` refuses models that are wrapped, initialized in part, or without values."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.distributed

REMEDIES = {
    "ddp": "wrapped in a DistributedDataParallel: initialize the model itself",
    "fsdp": "it is a DTensor, so something has sharded it already",
    "dtensor": "it is a DTensor, so something has sharded it already",
    "compiled": "initialize first, then compile",
    "meta": "parameters are on the meta device and have no values",
    "half meta": "1 parameters are on the meta device",
    "engine": "is part of a model that initialize has sharded",
    "in part": "is part of a model that initialize has sharded",
}


def test_each_is_refused_on_all_ranks_with_what_to_do(world2: Any) -> None:
    for results in world2.run("scenarios.wrapped_models:refuse"):
        assert set(results) == set(REMEDIES)
        for case, (error, together) in results.items():
            assert REMEDIES[case] in error, (case, error)
            assert together, case
