"""2 ranks. The record of tp_model_init is never used up: it shards the next model too, which never had a call."""

import deepspeed
import torch
from tiny import CONFIG, attempt, model, start

first = deepspeed.tp_model_init(model(), tp_size=2, dtype=torch.float32)
start(first, {**CONFIG, "tensor_parallel": {}})
attempt("another model, no call and no section", lambda: start(model(), dict(CONFIG)))
