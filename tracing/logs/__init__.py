"""JSON log lines, the requests' own among them, and what is blacked out."""
