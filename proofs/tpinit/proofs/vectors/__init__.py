"""Where the conformance vectors come from: classes of inputs, one witness each, and every oracle's answer.

`families` says by which predicates each part of the answer is decided, `classes` enumerates their
satisfiable valuations, `candidates` finds the witnesses, `flags` and `boundaries` say why a vector is
there, and `generating` puts all of it together, checks and writes it.
"""
