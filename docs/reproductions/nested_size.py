"""2 ranks. tp.tp_size alone enables nothing: the model trains unsharded, without an error or a warning."""

from tiny import CONFIG, attempt, model, start

attempt("tp.tp_size 2", lambda: start(model(), {**CONFIG, "tensor_parallel": {"tp": {"tp_size": 2}}}))
