"""Inference servers: found, fetched, and their recent past."""
