import os
import signal

from hypothesis import settings

pytest_plugins = ["fake_nvml.fixtures", "support.fixtures", "support.up", "support.plain_install"]

_NEEDED = {"PYTHONPATH", "PYTHONHOME"}  # without them Python may not find its own modules

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


def pytest_sessionstart():
    """Start without variables that change how Python behaves; end in good order when told to: fixtures stop programs.

    Under PYTHONUNBUFFERED a program whose output is lost in a buffer looks right.
    """
    for name in [name for name in os.environ if name.startswith("PYTHON") and name not in _NEEDED]:
        del os.environ[name]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A shell has SIGINT ignored in what it runs in the background, nohup has SIGHUP, and so would all that we start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
