"""Simulated engines and GPUs: for people without hardware and for load, never a stand-in where a real part can run."""
