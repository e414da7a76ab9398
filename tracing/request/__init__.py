"""One request: from what was seen while it ran to the record that is reported."""
