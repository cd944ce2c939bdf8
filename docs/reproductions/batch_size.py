"""4 ranks. train_batch_size 8 with autotp_size 2: an update uses 4 samples (TP ranks count as DP ranks)."""

from tiny import CONFIG, Mpu, model, start, tell

config = {**CONFIG, "train_batch_size": 8, "tensor_parallel": {"autotp_size": 2}}
for name, more in (("no mpu", {}), ("an mpu", {"mpu": Mpu([[0, 1], [2, 3]], [[0, 2], [1, 3]])})):
    engine = start(model(), config, **more)
    steps = engine.gradient_accumulation_steps()
    tell(f"{name}: 2 data-parallel ranks x micro batches of 1 x {steps} accumulated = {2 * steps} samples")
