"""GPUs: one thread each, their readings, and what they put on the page."""
