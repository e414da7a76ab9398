"""Spans, their encoding as OTLP, and how they are sent."""
