"""4 ranks. Row 4: an mpu with the TP groups [0, 2] and [1, 3]. DeepSpeed shards over [0, 1] and [2, 3] instead."""

from tiny import CONFIG, Mpu, attempt, model, start, tell, train

mpu = Mpu([[0, 2], [1, 3]], [[0, 1], [2, 3]])
engine = attempt("initialize", lambda: start(model(), {**CONFIG, "tensor_parallel": {"autotp_size": 2}}, mpu=mpu))
# The data is right for the mpu: ranks 0 and 2 see one batch, ranks 1 and 3 another.
attempt("first update on the mpu's data", lambda: train(engine, [[1, 2, 1, 2]]))
# The check compares the first batch only. If that one is equal on all ranks, no error is raised.
engine = start(model(), {**CONFIG, "tensor_parallel": {"autotp_size": 2}}, mpu=mpu)
off = train(engine, [[0, 0, 0, 0], [1, 2, 1, 2], [3, 4, 3, 4], [5, 6, 5, 6]])
tell(f"4 updates, the first batch shared by all ranks: final norm's weight off by {off:.3f}")
