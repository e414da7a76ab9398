"""`python -m vllm_vitals` is the command `vllm-vitals`."""

import sys

from .cli.main import main

sys.exit(main())
