"""2 ranks. A size larger than the world: an error without a single word."""

from tiny import CONFIG, attempt, model, start

attempt("autotp_size 8", lambda: start(model(), {**CONFIG, "tensor_parallel": {"autotp_size": 8}}))
