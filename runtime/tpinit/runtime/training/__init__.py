"""The engine: gradients, optimizers, schedules, loss scaling, data."""
