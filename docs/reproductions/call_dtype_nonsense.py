"""2 ranks. tp_model_init accepts any dtype, even one that does not exist."""

import deepspeed
from tiny import CONFIG, attempt, model, start

net = deepspeed.tp_model_init(model(), tp_size=2, dtype="bf61")
attempt("dtype='bf61'", lambda: start(net, {**CONFIG, "tensor_parallel": {"autotp_size": 2}}))
