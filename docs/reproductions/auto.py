"""2 ranks. `autotp_size: "auto"` alone is compared with 0; with a call it is a conflict."""

import deepspeed
import torch
from tiny import CONFIG, attempt, model, start

attempt("autotp_size 'auto'", lambda: start(model(), {**CONFIG, "tensor_parallel": {"autotp_size": "auto"}}))
net = deepspeed.tp_model_init(model(), tp_size=2, dtype=torch.float32)
attempt("with a call of 2", lambda: start(net, {**CONFIG, "tensor_parallel": {"autotp_size": "auto"}}))
