"""From the queue behind vLLM's event loop to everything that reports requests, in a thread or a child process."""
