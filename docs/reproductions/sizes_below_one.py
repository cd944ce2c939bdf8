"""2 ranks. Sizes below 1, and no size: a section trains unsharded, a call fails in arithmetic."""

import deepspeed
import torch
from tiny import CONFIG, attempt, model, start

for section in ({"autotp_size": -1}, {"tp": {"tp_size": 0}}, {"tp": {"tp_size": -1}}, {}):
    attempt(f"{section}", lambda section=section: start(model(), {**CONFIG, "tensor_parallel": section}))
net = deepspeed.tp_model_init(model(), tp_size=0, dtype=torch.float32)
attempt("tp_model_init(tp_size=0)", lambda: start(net, {**CONFIG, "tensor_parallel": {}}))
