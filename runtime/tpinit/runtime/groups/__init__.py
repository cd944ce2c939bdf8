"""Process groups of a run: topology, meshes, and the agreement of ranks."""
