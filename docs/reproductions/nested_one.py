"""2 ranks. autotp_size 2 and tp.tp_size 1 differ, and no error is raised."""

from tiny import CONFIG, attempt, model, start

section = {"autotp_size": 2, "tp": {"tp_size": 1}}
attempt("initialize", lambda: start(model(), {**CONFIG, "tensor_parallel": section}))
