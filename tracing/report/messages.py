"""By which byte the process of vLLM and the child of `export: process` tell each other what a message is."""

from typing import Final

# To the child
SETUP: Final = b"s"  # pickled Reporting, pickled Outputs
REQUEST: Final = b"r"  # exchange, timelines: see exchange_wire.py
ALONE: Final = b"a"  # the same: a sequence without an HTTP request, or whose HTTP request was reported before
OUTPUTS: Final = b"o"  # pickled Outputs, when they change
END: Final = b"e"  # monotonic seconds by which to be done

# From the child
PID: Final = b"p"  # its process id, first of all
REPORT: Final = b"c"  # counts, requests reported since the last time, spans waiting, request metrics as JSON or None
LINE: Final = b"l"  # of a record that the child cannot write: logger, level, text, fields, Unix seconds
