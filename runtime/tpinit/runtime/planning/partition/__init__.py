"""How a model may be sharded: regions of layers that are cut together, and the shard maps that fit their sizes."""
