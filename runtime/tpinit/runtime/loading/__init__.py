"""Models on the meta device, and their weights, read from safetensors files or drawn for one rank."""
