"""Every name that we emit or read, as data."""
