"""4 ranks. An mpu with groups of 4 and autotp_size 2: the two sizes are not compared."""

from tiny import CONFIG, Mpu, attempt, model, start

mpu = Mpu([[0, 1, 2, 3]], [[0], [1], [2], [3]])
attempt("initialize", lambda: start(model(), {**CONFIG, "tensor_parallel": {"autotp_size": 2}}, mpu=mpu))
