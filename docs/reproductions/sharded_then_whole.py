"""2 ranks. After a sharded model, a model that is not sharded can't be initialized in the same process."""

from tiny import CONFIG, attempt, model, start

attempt("autotp_size 2", lambda: start(model(), {**CONFIG, "tensor_parallel": {"autotp_size": 2}}))
attempt("then autotp_size 1", lambda: start(model(), {**CONFIG, "tensor_parallel": {"autotp_size": 1}}))
attempt("then no section at all", lambda: start(model(), dict(CONFIG)))
