"""Process groups of a run: topology, device meshes, tensor digests, and the agreement of ranks."""
