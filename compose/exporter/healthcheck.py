"""Exit code 0 when the exporter on this port of the container says that it is alive; imports next to nothing."""

import socket
import sys

with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=8) as connection:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    sys.exit(not connection.recv(64).startswith(b"HTTP/1.1 200"))
