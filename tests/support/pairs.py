"""A sharded model beside its unsharded copy."""

from __future__ import annotations

import copy
from typing import Any

import torch.distributed as dist
from tpinit.runtime import initialize

from support.tiny_models import build

KEYWORDS = ("sequence_parallel", "gather_logits", "check_inputs_every")


def pair(**options: Any) -> tuple[Any, Any]:
    """Return an unsharded tiny model, and the engine, without an optimizer, of a copy sharded over the world.

    Options of `initialize` (KEYWORDS) go there, others into the model's config.
    """
    keywords = {name: options.pop(name) for name in KEYWORDS if name in options}
    model = build(**options)
    unsharded = copy.deepcopy(model)
    config = {"tensor_parallel": {"autotp_size": dist.get_world_size()}, "gradient_clipping": 0}
    engine, *_ = initialize(model=model, config=config, **keywords)
    return unsharded, engine
