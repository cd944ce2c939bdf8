"""The same training step under every implementation of tensor parallelism, side by side: `make bench`."""
