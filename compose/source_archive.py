"""This package's own source as one archive, from which the exporter's image is built: installed or checked out."""

import functools
import gzip
import io
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).parents[1]  # the package: in a checkout the repo's root
_FOUNDATION: Final = ("pyproject.toml", "README.md", "LICENSE")


@functools.cache
def archive(root: Path = _ROOT) -> bytes:
    """Return source.tar.gz: what pyproject.toml lists. Equal sources make equal bytes: no build is repeated."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(set(_files(root))):
            content = path.read_bytes()
            entry = tarfile.TarInfo(path.relative_to(root).as_posix())
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), mtime=0)


def _files(root: Path) -> Iterator[Path]:
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    setuptools = project["tool"]["setuptools"]
    yield from (root / name for name in _FOUNDATION)
    for package in setuptools["packages"]:
        folder = root.joinpath(*package.split(".")[1:])
        yield from folder.glob("*.py")
        if package == __package__:
            continue  # the image needs no bundle
        for pattern in setuptools["package-data"].get(package, ()):
            yield from (path for path in folder.glob(pattern) if path.is_file())
