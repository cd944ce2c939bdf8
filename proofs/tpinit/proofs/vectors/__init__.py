"""Generation of the conformance vectors: classes of inputs, one witness per class, and every oracle's answer.

`families` defines which predicates decide each part of the answer, `classes` enumerates their satisfiable
valuations, `candidates` finds the witnesses, `flags` gives the reason of each vector, `boundaries` adds
boundary inputs, and `generating` combines, checks and writes the vectors.
"""
