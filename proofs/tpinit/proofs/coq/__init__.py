"""The kernel-checked core: its generated data, the audit of its assumptions, and its comparison with the resolver."""
