"""4 ranks. A size that does not divide the world size: three ranks get an engine, one an IndexError."""

from tiny import CONFIG, attempt, model, start

attempt("autotp_size 3", lambda: start(model(), {**CONFIG, "tensor_parallel": {"autotp_size": 3}}))
