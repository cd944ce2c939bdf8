"""Training on GPUs, beside the unsharded model on the same GPU: `make test-gpu`."""
