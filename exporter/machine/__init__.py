"""The machine and its processes, this one included."""
