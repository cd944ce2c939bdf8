"""4 ranks. Two models, autotp_size 4 and then 2: the second one is sharded over the group of the first."""

from tiny import CONFIG, attempt, model, start, tell, train


def second():
    """Return the engine of the second model, which asks for groups of 2."""
    return start(model(), {**CONFIG, "tensor_parallel": {"autotp_size": 2}})


start(model(), {**CONFIG, "tensor_parallel": {"autotp_size": 4}})
engine = attempt("second model, autotp_size 2", second)
# The data is right for groups of 2: ranks 0 and 1 see one batch, ranks 2 and 3 another.
attempt("first update", lambda: train(engine, [[1, 1, 2, 2]]))
off = train(second(), [[0, 0, 0, 0], [1, 1, 2, 2], [3, 3, 4, 4], [5, 5, 6, 6]])
tell(f"4 updates, the first batch shared by all ranks: final norm's weight off by {off:.3f}")
