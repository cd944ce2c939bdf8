"""2 ranks. Row 5: a call alone. The table says error; DeepSpeed creates a group."""

import deepspeed
import torch
from tiny import CONFIG, attempt, model, start

net = deepspeed.tp_model_init(model(), tp_size=2, dtype=torch.float32)
attempt("row 5", lambda: start(net, dict(CONFIG)))
