"""Images without a registry: real programs from Debian's packages and from this Python, under the tags that .env pins.

For programs that cannot be had here there are stand-ins: a small HTTP server that answers where the real one would.
Each image says in a label what is inside.
"""

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from vllm_vitals.compose.source_archive import archive

_BUSYBOX = (
    "sh",
    "sleep",
    "wget",
    "cat",
    "cp",
    "chmod",
    "chown",
    "mkdir",
    "mv",
    "rm",
    "ls",
    "id",
    "grep",
    "echo",
    "touch",
    "ln",
    "test",
    "env",
    "kill",
)
_OF_WHEELS = {
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libm.so.6",
    "libc.so.6",
    "libgcc_s.so.1",
    "libstdc++.so.6",
}
_PASSWD = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"


class Root:
    """A root file system that grows."""

    def __init__(self, folder: Path, busybox: Path):
        self.folder = folder
        for name in ("bin", "etc", "tmp", "usr/local/bin"):
            (folder / name).mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        (folder / "etc/passwd").write_text(_PASSWD)  # BuildKit wants both
        (folder / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
        shutil.copy(busybox, folder / "bin/busybox")
        for name in _BUSYBOX:
            (folder / "bin" / name).symlink_to("busybox")

    def program(self, source: Path, target: str) -> None:
        """Add a program with the libraries that it is linked to."""
        place = self.folder / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
        self.libraries(source)

    def libraries(self, *programs: Path) -> None:
        said = subprocess.run(["ldd", *programs], capture_output=True, text=True).stdout
        for path in {word for word in said.split() if word.startswith("/") and not word.endswith(":")}:
            place = self.folder / path.lstrip("/")
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)

    def folder_of(self, owner: int, path: str) -> None:
        """Add an empty folder; a new volume takes the owner of its mount point."""
        place = self.folder / path.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        os.chown(place, owner, owner)

    def python(self, wheels: Path | None) -> None:
        """Add this very Python where it lies here, without what is installed into it; pip where there are wheels."""
        base = Path(sys.base_prefix)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        binary = Path(sys.base_prefix) / "bin" / version
        self.program(binary, str(binary))
        source, target = base / "lib" / version, self.folder / str(base).lstrip("/") / "lib" / version
        unneeded = shutil.ignore_patterns(
            "test",
            "tests",
            "idlelib",
            "tkinter",
            "turtledemo",
            "site-packages",
            "dist-packages",
            "__pycache__",
            "EXTERNALLY-MANAGED",
            "config-*",
        )
        shutil.copytree(source, target, symlinks=True, ignore=unneeded)
        self.libraries(*(target / "lib-dynload").glob("*.so"))
        known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout
        for line in known.splitlines():  # what wheels are linked to: ldd tells only what Python is
            name, _, path = line.strip().partition(" => ")
            if name.split(" ")[0] in _OF_WHEELS and "x86-64" in name:
                place = self.folder / path.lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)
        for name in ("python", "python3", version):
            (self.folder / "usr/local/bin" / name).symlink_to(binary)
        for parent in (self.folder / str(base).lstrip("/")).parents:  # such as /root/.pyenv: other users read it
            if self.folder in parent.parents:
                parent.chmod(0o755)
        if wheels is not None:
            shutil.copytree(wheels, self.folder / "wheels")
            (self.folder / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
            bundled = Path("/usr/share/python-wheels")
            if not any((target / "ensurepip/_bundled").glob("pip*")) and bundled.is_dir():  # Debian keeps them apart
                shutil.copytree(bundled, self.folder / str(bundled).lstrip("/"))

    def imported(self, docker: "Docker", tag: str, inside: str, **config: str) -> None:
        """Make it an image."""
        changes = [f'LABEL vllm-vitals.inside="{inside}"', *(f"{key} {value}" for key, value in config.items())]
        arguments = [part for change in changes for part in ("--change", change)]
        with subprocess.Popen(["tar", "-C", self.folder, "-c", "."], stdout=subprocess.PIPE) as tar:
            docker("import", *arguments, "-", tag, stdin=tar.stdout)
        shutil.rmtree(self.folder)


class Docker:
    """The command line of an engine of ours."""

    def __init__(self, programs: Path, folder: Path):
        self.programs = programs
        self.folder = folder
        self.env = {
            **os.environ,
            "DOCKER_HOST": f"unix://{folder}/docker.sock",
            "DOCKER_CONFIG": f"{folder}/config",
            "PATH": f"{programs}/bin:{os.environ['PATH']}",
        }

    def __call__(self, *arguments: object, stdin=None, check: bool = True, timeout: float = 300, cwd=None) -> str:
        said = subprocess.run(
            ["docker", *map(str, arguments)],
            env=self.env,
            cwd=cwd,
            stdin=stdin or subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or said.returncode == 0, (
            f"docker {' '.join(map(str, arguments[:3]))}: {said.stdout[-2000:]}{said.stderr[-3000:]}"
        )
        return said.stdout


def make(docker: Docker, pins: dict[str, str], work: Path, wheels: Path) -> None:
    """Make every image that a bundle's .env names, except the exporter's, which the shipped Dockerfile builds."""
    debian = docker.programs / "root"
    busybox = debian / "busybox"

    def root(name: str) -> Root:
        return Root(work / name, busybox)

    prometheus = root("prometheus")
    prometheus.program(debian / "prometheus", "/bin/prometheus")
    prometheus.folder_of(65534, "/prometheus")
    prometheus.folder_of(0, "/out")
    prometheus.imported(
        docker,
        pins["PROMETHEUS_IMAGE"],
        "Prometheus 3.5 of Debian",
        ENTRYPOINT='["/bin/prometheus"]',
        USER="65534:65534",
    )

    alertmanager = root("alertmanager")
    alertmanager.program(debian / "prometheus-alertmanager", "/bin/alertmanager")
    alertmanager.folder_of(65534, "/alertmanager")
    if (debian / "alertmanager-share").is_dir():
        shutil.copytree(debian / "alertmanager-share", alertmanager.folder / "usr/share/prometheus/alertmanager")
    alertmanager.imported(
        docker,
        pins["ALERTMANAGER_IMAGE"],
        "Alertmanager of Debian",
        ENTRYPOINT='["/bin/alertmanager"]',
        USER="65534:65534",
    )

    node = root("node")
    node.program(debian / "prometheus-node-exporter", "/bin/node_exporter")
    node.imported(
        docker,
        pins["NODE_EXPORTER_IMAGE"],
        "node_exporter of Debian",
        ENTRYPOINT='["/bin/node_exporter"]',
        USER="65534:65534",
    )

    python = root("python")
    python.python(wheels)
    python.imported(docker, pins["PYTHON_IMAGE"], "Python and wheels of this machine")

    standin = root("standin")
    standin.python(None)
    shutil.copy(Path(__file__).with_name("stand_in.py"), standin.folder / "stand_in.py")
    standin.folder_of(472, "/var/lib/grafana")
    standin.imported(
        docker,
        pins["GRAFANA_IMAGE"],
        "STAND-IN, no Grafana",
        ENTRYPOINT='["/usr/local/bin/python", "/stand_in.py", "grafana"]',
    )


def collect_wheels(cache: Path) -> Path:
    """Return a folder with what the exporter's image installs, fetched once by pip from the index that the user has."""
    root = Path(__file__).parents[2]
    folder = cache / f"exporter-wheels-{hashlib.sha256((root / 'pyproject.toml').read_bytes()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory(dir=cache) as work:
        source, wheels = Path(work, "source"), Path(work, "wheels")
        with tarfile.open(fileobj=io.BytesIO(archive())) as tar:
            tar.extractall(source, filter="data")
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel", "--wheel-dir", wheels]
        subprocess.run([*pip, "setuptools>=77", f"{source}[kubernetes]"], check=True)
        for own in wheels.glob("vllm_vitals-*"):
            own.unlink()
        with contextlib.suppress(OSError):  # another run was faster
            wheels.rename(folder)
    return folder
