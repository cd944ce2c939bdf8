"""2 ranks. tensor_parallel.tp.mpu accepts any value, and nothing reads it."""

from tiny import CONFIG, attempt, model, start

section = {"autotp_size": 2, "tp": {"mpu": "x"}}
attempt("tp.mpu 'x'", lambda: start(model(), {**CONFIG, "tensor_parallel": section}))
