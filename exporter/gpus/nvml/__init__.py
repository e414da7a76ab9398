"""NVML as a source of GPUs."""
