"""Weights of a rank: read from safetensors or drawn from a seed, its own part alone."""
