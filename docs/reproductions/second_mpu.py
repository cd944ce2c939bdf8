"""4 ranks. A second model with an mpu makes the first, sharded one average over the second one's group."""

from tiny import CONFIG, Mpu, model, start, tell, train

UPDATES = [[1, 1, 2, 2], [3, 3, 4, 4], [5, 5, 6, 6]]
alone = train(start(model(), {**CONFIG, "tensor_parallel": {"autotp_size": 2}}), UPDATES)
engine = start(model(), {**CONFIG, "tensor_parallel": {"autotp_size": 2}})
start(model(), dict(CONFIG), mpu=Mpu([[0], [1], [2], [3]], [[0, 1, 2, 3]]))
tell(f"3 updates: off by {alone:.3f} alone, by {train(engine, UPDATES):.3f} after a second model with an mpu")
