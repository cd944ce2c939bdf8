"""The conformance vectors, as data: `vectors.jsonl`, `manifest.json` and the schema of a vector.

Written by `tpinit vectors --write`; `tpinit.conformance.vectors` reads them.
"""
