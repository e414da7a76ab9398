"""Fixtures that put the fake NVML library in front of real pynvml, in this process or in another one."""

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .build import SONAME, library
from .state import FakeNvml


@dataclass(frozen=True)
class FakeDriver:
    """A fake driver of its own for one test: an own copy of the library, so that nothing is left from other tests."""

    library: Path
    state: FakeNvml

    @property
    def library_dir(self) -> Path:
        return self.library.parent

    @property
    def env(self) -> dict[str, str]:
        """Environment of a subprocess that shall see this driver."""
        return {**os.environ, "LD_LIBRARY_PATH": str(self.library_dir), "FAKE_NVML_STATE": str(self.state.path)}

    def calls(self, function: str) -> int:
        """Return how often this process called a function."""
        count = self._loaded().fake_nvml_calls
        count.restype = ctypes.c_ulonglong
        return count(function.encode())

    def field_reads(self, field: int) -> int:
        """Return how often this process asked for a field id."""
        count = self._loaded().fake_nvml_field_reads
        count.restype = ctypes.c_ulonglong
        return count(field)

    def _loaded(self) -> ctypes.CDLL:
        return ctypes.CDLL(str(self.library))  # the loader hands out the object that is loaded already

    @contextlib.contextmanager
    def attach(self) -> Iterator["FakeDriver"]:
        """Let pynvml of this process use the fake; at the end every hang is released."""
        import pynvml

        before = os.environ.get("FAKE_NVML_STATE")
        os.environ["FAKE_NVML_STATE"] = str(self.state.path)
        pynvml.nvmlLib = self._loaded()
        pynvml._nvmlGetFunctionPointer_cache.clear()
        try:
            yield self
        finally:
            self.state.release()
            pynvml.nvmlLib = None
            pynvml._nvmlLib_refcount = 0
            pynvml._nvmlGetFunctionPointer_cache.clear()
            if before is None:
                del os.environ["FAKE_NVML_STATE"]
            else:
                os.environ["FAKE_NVML_STATE"] = before


def fake_driver(folder: Path, *, old_driver: bool = False, wide_processes: bool = False) -> FakeDriver:
    """Return a fake driver whose files lie in a folder."""
    # A copy has its own inode and so its own variables, although the soname is the same for all of them.
    copy = folder / "driver" / SONAME
    copy.parent.mkdir()
    shutil.copy(library(old_driver=old_driver, wide_processes=wide_processes), copy)
    return FakeDriver(copy, FakeNvml(folder / "nvml.state"))


@pytest.fixture
def fake_nvml(tmp_path: Path) -> Iterator[FakeDriver]:
    """Eight H100 under load."""
    driver = fake_driver(tmp_path)
    yield driver
    driver.state.release()


@pytest.fixture
def fake_nvml_old(tmp_path: Path) -> Iterator[FakeDriver]:
    """The same with a driver that lacks GPM, versioned structs, `_v3` process lists and the newer field ids."""
    driver = fake_driver(tmp_path, old_driver=True)
    yield driver
    driver.state.release()


@pytest.fixture
def fake_nvml_r535(tmp_path: Path) -> Iterator[FakeDriver]:
    """The same with the process list of drivers 535.43 to 535.86."""
    driver = fake_driver(tmp_path, wide_processes=True)
    yield driver
    driver.state.release()
