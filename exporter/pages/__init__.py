"""Pages of metrics as bytes: our samples, and the engines' pages relabelled and merged."""
