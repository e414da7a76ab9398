"""Where no Docker Engine of our own can run, the tests that need one say why."""

import os
import shutil
import subprocess

import pytest
from docker_engine import bundles


def test_without_apt(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(bundles.NoDockerError, match="this system has no apt"):
        bundles.unpacked(tmp_path)


def test_without_root(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(bundles.NoDockerError, match="needs root"), bundles.engine(tmp_path, tmp_path):
        pass


def test_without_a_daemon_that_runs(monkeypatch, tmp_path):
    if shutil.which("unshare") is None or shutil.which("curl") is None:
        pytest.skip("unshare and curl are missing")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "no cgroups")
    )
    with pytest.raises(bundles.NoDockerError, match=r"dockerd does not run here: .*no cgroups"):
        bundles.engine(tmp_path, tmp_path).__enter__()
