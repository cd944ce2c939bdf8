"""The one place that touches private names of torch and transformers.

`torch_private` and `transformers_private` list every private name that the runtime leans on, and give each a function
with a public meaning. `tests/integration/internals` fails by name when a release changes one of them, and a lint there
rejects a private name of torch or transformers anywhere else in the runtime.
"""
