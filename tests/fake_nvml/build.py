"""Compiles the fake libnvidia-ml.so.1 into a cache folder keyed by its sources."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SONAME = "libnvidia-ml.so.1"
_HERE = Path(__file__).parent
_SOURCES = (_HERE / "fake_nvml.c", _HERE / "nvml_types.h")
_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}")


def library(*, old_driver: bool = False, wide_processes: bool = False) -> Path:
    """Return the compiled library; its folder is fit for LD_LIBRARY_PATH.

    The old driver lacks the newer symbols; the one with wide processes lists them as 535.43 to 535.86 do.
    """
    variants = (("-DOLD_DRIVER", old_driver), ("-DWIDE_PROCESSES", wide_processes))
    flags = (*_FLAGS, *(flag for flag, wanted in variants if wanted))
    digest = hashlib.sha256(b"\0".join([*(source.read_bytes() for source in _SOURCES), *map(str.encode, flags)]))
    folder = Path(tempfile.gettempdir()) / f"fake-nvml-{os.getuid()}" / digest.hexdigest()[:16]
    compiled = folder / SONAME
    if not compiled.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"{SONAME}.{os.getpid()}"  # two test runs may compile at once
        subprocess.run(["gcc", *flags, "-o", fresh, _SOURCES[0], "-lpthread"], check=True)
        fresh.replace(compiled)
    return compiled


if __name__ == "__main__":
    print(library(old_driver="--old-driver" in sys.argv[1:]))
