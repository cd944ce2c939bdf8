"""The dry run of a plan, and the search for one that passes it."""
