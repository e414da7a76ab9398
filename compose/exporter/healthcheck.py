"""Exit code 0 when the exporter on this port of the container says that it is alive."""

import sys
from http.client import HTTPConnection

connection = HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=4)
connection.request("GET", "/healthz")
sys.exit(connection.getresponse().status != 200)
