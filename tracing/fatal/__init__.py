"""What ended engines: recognised in log records, and remembered."""
