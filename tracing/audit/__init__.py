"""The audit log: written, sealed, verified."""
