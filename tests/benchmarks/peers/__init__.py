"""One module per peer: how it shards the model and runs a step. Only the peer's own ranks import it."""
