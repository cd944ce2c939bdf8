"""A benchmark of the same training step with several implementations of tensor parallelism: `make bench`."""
