"""What a run will hold and send, computed before it starts."""
