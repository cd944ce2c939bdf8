"""A second semantics of the provable subset: from the syntax tree of a module to SMT terms, without running it."""
