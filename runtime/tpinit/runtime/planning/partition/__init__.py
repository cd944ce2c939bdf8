"""Regions of a model that are cut together, and the shard maps that fit them."""
