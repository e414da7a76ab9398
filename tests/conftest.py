from hypothesis import settings

pytest_plugins = ["fake_nvml.fixtures", "support.fixtures"]

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
