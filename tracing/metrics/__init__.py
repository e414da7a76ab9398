"""What the plugin counts, and its page."""
