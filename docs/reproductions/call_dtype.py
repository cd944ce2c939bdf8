"""2 ranks. Rows 6-8: the dtype of tp_model_init is ignored; the parameters stay in fp32."""

import deepspeed
import torch
from tiny import CONFIG, attempt, model, start

net = deepspeed.tp_model_init(model(), tp_size=2, dtype=torch.bfloat16)
attempt("dtype=torch.bfloat16", lambda: start(net, {**CONFIG, "tensor_parallel": {"autotp_size": 2}}))
