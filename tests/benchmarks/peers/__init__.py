"""One module a peer: how it cuts the model and takes a step. Imported by its own ranks only."""
