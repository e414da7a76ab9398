import signal

from hypothesis import settings

pytest_plugins = ["fake_nvml.fixtures", "support.fixtures", "support.up"]

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


def pytest_sessionstart():
    """End in good order when told to: fixtures stop the programs that they started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
