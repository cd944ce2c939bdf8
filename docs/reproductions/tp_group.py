"""4 ranks. Row 9: tp_model_init with a tp_group. Rank 0 can't print its config and raises; the others continue."""

import deepspeed
import torch
from tiny import CONFIG, attempt, group, model, start

net = deepspeed.tp_model_init(model(), tp_size=2, dtype=torch.float32, tp_group=group([[0, 1], [2, 3]]))
attempt("initialize", lambda: start(net, dict(CONFIG)))
