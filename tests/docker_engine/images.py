"""Images without a registry: real programs from Debian's packages and from this Python, under the tags that .env pins.

For programs that cannot be had here there are stand-ins (stand_in.py): they look at what they are given and answer
where the real one would. Each image says in a label what is inside.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import yaml
from support.collectors import CORE, core_part
from vllm_vitals.compose.bundle import SHIPPED
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
    "sed",
    "cut",  # from here on: what the set-up jobs need, whose images have it from coreutils
    "tr",
    "date",
    "dirname",
    "mktemp",
    "cmp",
    "true",
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

    def folder_of(self, owner: int, path: str, group: int | None = None) -> None:
        """Add an empty folder; a new volume takes the owner of its mount point."""
        place = self.folder / path.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        os.chown(place, owner, owner if group is None else group)

    def script(self, path: str, *command: str) -> None:
        """Add a program that is another one with these arguments."""
        place = self.folder / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f'#!/bin/bash\nexec {" ".join(command)} "$@"\n')
        place.chmod(0o755)

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

    def __call__(
        self, *arguments: object, stdin=None, check: bool = True, both: bool = False, timeout: float = 300, cwd=None
    ) -> str:
        """Return what the command printed, with `both` also to standard error."""
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
        return said.stdout + said.stderr if both else said.stdout


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

    stand_ins(docker, pins, root("stand-in"), wheels)


# Which pin stands for which; vLLM's is the image that would be built.
STAND_INS = {
    "grafana": "GRAFANA_IMAGE",
    "collector": "COLLECTOR_IMAGE",
    "jaeger": "JAEGER_IMAGE",
    "elasticsearch": "ELASTICSEARCH_IMAGE",
    "kibana": "KIBANA_IMAGE",
    "filebeat": "FILEBEAT_IMAGE",
    "vllm": "VLLM_IMAGE",
}
_CALL = ("/usr/local/bin/python", "-B", "/stand-in/stand_in.py")


def stand_ins(docker: Docker, pins: dict[str, str], root: Root, wheels: Path) -> None:
    """Make the images of what cannot be had: one file system under several names, each with its own first program."""
    root.python(None)
    for name in ("bash", "curl"):  # what scripts of the bundle call in these images
        found = shutil.which(name)
        assert found, f"apt-get install {name}"
        root.program(Path(found).resolve(), f"/bin/{name}")
    here = root.folder / "stand-in"
    here.mkdir()
    shutil.copy(Path(__file__).with_name("stand_in.py"), here)
    shutil.copy(Path(__file__).parents[1] / "support/store_servers.py", here)
    (pyyaml,) = wheels.glob("pyyaml-*.whl")
    with zipfile.ZipFile(pyyaml) as wheel:
        wheel.extractall(here)

    root.folder_of(472, "/var/lib/grafana", 0)
    root.folder_of(1000, "/cache", 0)
    for home in ("elasticsearch", "kibana", "filebeat"):
        root.folder_of(1000, f"/usr/share/{home}/config", 0)
        root.folder_of(0 if home == "filebeat" else 1000, f"/usr/share/{home}/data", 0)
    (root.folder / "usr/share/elasticsearch/config/elasticsearch.yml").write_text("network.host: 0.0.0.0\n")
    for tool in ("elasticsearch-keystore", "kibana-keystore", "filebeat"):
        root.script(f"/usr/local/bin/{tool}", *_CALL, tool)
    root.script("/usr/local/bin/docker-entrypoint.sh", *_CALL, "elasticsearch")
    root.script("/usr/local/bin/kibana-docker", *_CALL, "kibana")
    core = CORE.exists()
    if core:
        root.program(CORE, "/usr/local/bin/otelcol-core")
        (root.folder / "etc/otelcol-core.yaml").write_text(yaml.safe_dump(_core_config()))
    base = "vllm-vitals-stand-in:local"
    root.imported(docker, base, "STAND-IN")
    container = docker("create", "--network", "none", base, "true").strip()
    for name, pin in STAND_INS.items():
        inside = f"STAND-IN, no {name}"
        if core and name == "collector":
            inside += ": the collector's real core, without contrib's parts"
        entrypoint = json.dumps([*_CALL, name])
        docker("commit", "--change", f'LABEL vllm-vitals.inside="{inside}"', "--change", f"ENTRYPOINT {entrypoint}",
               "--change", "CMD []", container, pins[pin])  # fmt: skip
    docker("rm", container)


def _core_config() -> dict:
    """Return the shipped configuration as far as the core goes, on the collector's own address of the loopback."""
    config = core_part(yaml.safe_load((SHIPPED / "collector/config.yaml").read_text()))
    for protocol in config["receivers"]["otlp"]["protocols"].values():
        protocol["endpoint"] = protocol["endpoint"].replace("0.0.0.0", "collector")
    return config


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
