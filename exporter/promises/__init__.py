"""What was promised, how it stands, and the alerts of those who watch it."""
