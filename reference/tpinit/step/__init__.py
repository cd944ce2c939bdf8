"""The step proof: is the recorded training step of the ranks that of the whole model, for all weights and batches?

A recording is a `Graph` of plain data, one of the whole model and one of each rank. Nothing here imports torch or a
solver.
"""
