"""Training: the engine, gradients over ranks, optimizers, learning-rate schedules, loss scaling, data loading."""
