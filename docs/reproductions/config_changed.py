"""2 ranks. initialize writes to the caller's config, even if it raises."""

import deepspeed
import torch
from tiny import CONFIG, attempt, model, start, tell

net = deepspeed.tp_model_init(model(), tp_size=2, dtype=torch.float32)
config = {**CONFIG, "tensor_parallel": {}}
start(net, config)
tell(f"after success: {config['tensor_parallel']}")
config = {**CONFIG, "bf16": {"enabled": True}}
attempt("dtype mismatch", lambda: start(net, config))
tell(f"after the error: {config.get('tensor_parallel')}")
