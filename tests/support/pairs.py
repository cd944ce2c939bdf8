"""A sharded model beside its unsharded copy."""

from __future__ import annotations

import copy
from typing import Any

import torch.distributed as dist
from tpinit.runtime import initialize

from support.tiny_models import build


def pair(**options: Any) -> tuple[Any, Any]:
    """Return an unsharded tiny model, and the engine, without an optimizer, of a copy sharded over the world."""
    model = build(**options)
    unsharded = copy.deepcopy(model)
    config = {"tensor_parallel": {"autotp_size": dist.get_world_size()}, "gradient_clipping": 0}
    engine, *_ = initialize(model=model, config=config)
    return unsharded, engine
