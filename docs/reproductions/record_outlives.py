"""2 ranks. The record of tp_model_init stays after its use and shards the next model, which had no call."""

import deepspeed
import torch
from tiny import CONFIG, attempt, model, start

first = deepspeed.tp_model_init(model(), tp_size=2, dtype=torch.float32)
start(first, {**CONFIG, "tensor_parallel": {}})
attempt("another model, no call and no section", lambda: start(model(), dict(CONFIG)))
