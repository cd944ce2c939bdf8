"""2 ranks. tp_model_init accepts a negative size; initialize then fails on a tensor's shape."""

import deepspeed
import torch
from tiny import CONFIG, attempt, model, start

net = deepspeed.tp_model_init(model(), tp_size=-1, dtype=torch.float32)
attempt("tp_model_init(tp_size=-1)", lambda: start(net, {**CONFIG, "tensor_parallel": {}}))
