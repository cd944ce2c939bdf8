"""2 ranks. Row 1: no call, no section, no mpu. The table says error; DeepSpeed trains data parallel."""

from tiny import CONFIG, attempt, model, start

attempt("row 1", lambda: start(model(), dict(CONFIG)))
