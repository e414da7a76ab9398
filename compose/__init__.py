"""The bundle: everything around vLLM as one Docker Compose project, and the command that writes and runs it."""
