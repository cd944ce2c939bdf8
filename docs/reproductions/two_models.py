"""4 ranks. Two models, autotp_size 4 and then 2: the second one is sharded over the group of the first."""

from tiny import CONFIG, attempt, model, start, tell, train

start(model(), {**CONFIG, "tensor_parallel": {"autotp_size": 4}})
engine = attempt("second model", lambda: start(model(), {**CONFIG, "tensor_parallel": {"autotp_size": 2}}))
if engine is not None:
    off = train(engine, [[0, 0, 0, 0]] * 3)
    tell(f"3 updates of the second model on equal data: final norm's weight off by {off:.3f}")
