"""Studies of other implementations, made with the conformance kit. They are not part of the wheel."""
