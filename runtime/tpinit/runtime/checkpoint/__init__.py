"""Checkpoints: tensors by name and place in the whole tensor, so that any number of ranks can load them."""
