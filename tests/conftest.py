pytest_plugins = ["fake_nvml.fixtures", "support.fixtures"]
