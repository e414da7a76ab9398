"""Which engine runs on which GPU, and how we know."""
