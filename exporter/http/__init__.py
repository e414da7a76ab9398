"""HTTP: our server, who may use it, and small exchanges as a client."""
