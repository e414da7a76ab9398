"""Compose files as data, and as Compose itself reads them."""

import os
import subprocess
from pathlib import Path

import yaml


class _Compose(yaml.SafeLoader):
    """YAML with Compose's own tags."""


def _untagged(loader: yaml.SafeLoader, node: yaml.Node) -> list | None:
    return loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else None


_Compose.add_constructor("!reset", _untagged)
_Compose.add_constructor("!override", _untagged)


def read_compose(path: Path) -> dict:
    """Return a Compose file; what it resets is empty."""
    return yaml.load(path.read_text(), _Compose)


def compose_config(
    programs: Path, bundle: Path, *arguments: str, files: str, profiles: str, **settings: str
) -> subprocess.CompletedProcess:
    """Run `docker compose config` in a bundle's folder, with the programs that were unpacked and without a daemon."""
    plugins = bundle.parent / "docker-config/cli-plugins"
    if not plugins.exists():
        plugins.parent.mkdir()
        plugins.symlink_to(programs / "cli-plugins")
    environment = {"PATH": os.environ["PATH"], "HOME": str(bundle), "DOCKER_CONFIG": str(plugins.parent), **settings}
    return subprocess.run(
        [programs / "bin/docker", "compose", "config", *arguments], cwd=bundle, text=True, capture_output=True,
        env={**environment, "COMPOSE_FILE": files, "COMPOSE_PROFILES": profiles}, timeout=60,
    )  # fmt: skip
