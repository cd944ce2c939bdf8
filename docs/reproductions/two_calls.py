"""4 ranks. One record per process: two models can't have two sizes; another group of one size is accepted."""

import deepspeed
import torch
from tiny import attempt, group, model


def call(size, **more):
    """Record a call for a model of its own."""
    deepspeed.tp_model_init(model(), tp_size=size, dtype=torch.float32, **more)


call(2, tp_group=group([[0, 1], [2, 3]]))
attempt("the same size, another group", lambda: call(2, tp_group=group([[0, 2], [1, 3]])))
attempt("another model, another size", lambda: call(4))
