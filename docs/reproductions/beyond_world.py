"""2 ranks. A size larger than the world size raises an error without a message."""

from tiny import CONFIG, attempt, model, start

attempt("autotp_size 8", lambda: start(model(), {**CONFIG, "tensor_parallel": {"autotp_size": 8}}))
