"""Stands in, inside an image, for a program that cannot be had here. None is the program, and their labels say so.

A stand-in looks at what the bundle gives its program (user, arguments, files, secrets, places to write, powers), says
all that is wrong and ends with 1, or answers where the program would. What each expects is written down here, apart
from compose.yaml: from what is known of the real images. Elasticsearch's and Kibana's API are those of the tests'
strict servers, so the set-up jobs really run.
"""

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from glob import glob
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml  # both lie beside this file in the image
from store_servers import KibanaStore, Store, login, server_of

SECRETS = Path("/run/secrets")
READ_ANY_FILE = 1 << 2  # CAP_DAC_READ_SEARCH


@dataclass(frozen=True)
class Wanted:
    """What a program is given.

    Attributes:
        user: user and group.
        arguments: what the program is called with.
        files: what it reads; none may be empty.
        secrets: all that lies in /run/secrets.
        read_only: mounted so that it cannot change them.
        writable: where it writes, its memory disks among them.
        data: the one of these that is a volume.
        capabilities: all that it may have.
        executable: places from which it loads programs that it unpacked.
    """

    user: tuple[int, int]
    arguments: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    read_only: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    data: str = ""
    capabilities: int = 0
    executable: tuple[str, ...] = ()


_GRAFANA = "/etc/grafana"
_ELASTICSEARCH = "/usr/share/elasticsearch"
_KIBANA = "/usr/share/kibana"
_FILEBEAT = "/usr/share/filebeat"
WANTED = {
    "grafana": Wanted(
        user=(472, 0),
        files=(
            f"{_GRAFANA}/provisioning/datasources/vllm-vitals.yaml",
            f"{_GRAFANA}/provisioning/dashboards/vllm-vitals.yaml",
            f"{_GRAFANA}/dashboards/overview.json",
        ),
        secrets=("es_grafana_password", "grafana_admin_password"),
        read_only=(f"{_GRAFANA}/provisioning", f"{_GRAFANA}/dashboards", "/run/secrets"),
        writable=("/var/lib/grafana", "/tmp"),
        data="/var/lib/grafana",
    ),
    "elasticsearch": Wanted(
        user=(1000, 0),
        arguments=("eswrapper",),
        files=(f"{_ELASTICSEARCH}/config/elasticsearch.yml", "/run/elasticsearch/elasticsearch.yml"),
        secrets=("es_elastic_password",),
        read_only=(f"{_ELASTICSEARCH}/config", "/run/secrets"),
        writable=(f"{_ELASTICSEARCH}/data", f"{_ELASTICSEARCH}/logs", "/run/elasticsearch", "/tmp"),
        data=f"{_ELASTICSEARCH}/data",
        executable=("/tmp",),
    ),
    "kibana": Wanted(
        user=(1000, 0),
        files=(f"{_KIBANA}/config/kibana.yml", "/run/kibana/kibana.yml"),
        secrets=("es_kibana_password", "kibana_encryption_key"),
        read_only=(f"{_KIBANA}/config/kibana.yml", "/run/secrets"),
        writable=(f"{_KIBANA}/data", f"{_KIBANA}/logs", "/run/kibana", "/tmp"),
        data=f"{_KIBANA}/data",
    ),
    "filebeat": Wanted(
        user=(0, 0),
        arguments=("-e", "--strict.perms=false"),
        files=(f"{_FILEBEAT}/filebeat.yml",),
        secrets=("es_filebeat_password",),
        read_only=(f"{_FILEBEAT}/filebeat.yml", "/var/lib/docker/containers", "/run/secrets"),
        writable=(f"{_FILEBEAT}/data", f"{_FILEBEAT}/logs", "/tmp"),
        data=f"{_FILEBEAT}/data",
        capabilities=READ_ANY_FILE,
    ),
    "jaeger": Wanted(
        user=(10001, 10001),
        arguments=("--config=/etc/jaeger/config.yaml",),
        files=("/etc/jaeger/config.yaml",),
        secrets=("es_jaeger_password", "ui.json"),
        read_only=("/etc/jaeger/config.yaml", "/run/secrets"),
        writable=("/tmp",),
    ),
    "collector": Wanted(
        user=(10001, 10001),
        arguments=("--config=/etc/otelcol/config.yaml",),
        files=("/etc/otelcol/config.yaml",),
        read_only=("/etc/otelcol/config.yaml",),
        writable=("/tmp",),
    ),
    "vllm": Wanted(
        user=(1000, 0),
        secrets=("hf_token",),
        read_only=("/run/secrets",),
        writable=("/cache", "/tmp"),
        data="/cache",
        executable=("/tmp",),
    ),
}


# ---- what is looked at -----------------------------------------------------------------------------------------------
def problems(wanted: Wanted, arguments: Iterable[str]) -> list[str]:
    """Return all that is wrong with what this process was given, in words."""
    found = []

    def expect(what: str, expected: object, given: object) -> None:
        if given != expected:
            found.append(f"{what}: expected {expected}, found {given}")

    expect("user", "{}:{}".format(*wanted.user), f"{os.getuid()}:{os.getgid()}")
    expect("arguments", " ".join(wanted.arguments), " ".join(arguments))
    for path in wanted.files:
        expect(path, "a file that can be read", _reading(path))
    found += _secrets_problems(wanted)
    expect("root file system", "read-only", "read-only" if os.statvfs("/").f_flag & os.ST_RDONLY else "writable")
    for path in wanted.read_only:
        mounted = os.path.exists(path) and os.statvfs(path).f_flag & os.ST_RDONLY
        expect(path, "read-only", "read-only" if mounted else "nothing of the kind")
    for path in wanted.writable:
        expect(path, "writable", "writable" if _writes(path) else "nothing of the kind")
    for path in wanted.executable:
        expect(path, "programs may lie there", "mounted noexec" if os.statvfs(path).f_flag & os.ST_NOEXEC
               else "programs may lie there")  # fmt: skip
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    for name in ("CapPrm", "CapEff", "CapBnd"):
        if int(status[name], 16) & ~wanted.capabilities:
            found.append(f"{name}: expected no more than {wanted.capabilities:x}, found {status[name]}")
    if wanted.capabilities & ~int(status["CapEff"], 16):
        found.append(f"CapEff: expected {wanted.capabilities:x}, found {status['CapEff']}")
    expect("no-new-privileges", "1", status["NoNewPrivs"])
    expect("memory", "bounded", _memory())
    return found


def _secrets_problems(wanted: Wanted) -> list[str]:
    try:
        there = sorted(os.listdir(SECRETS)) if SECRETS.is_dir() else []
    except OSError as error:
        return [f"{SECRETS}: expected a folder that can be read, found {error.strerror}"]
    if there != sorted(wanted.secrets):
        return [f"{SECRETS}: expected {', '.join(wanted.secrets) or 'nothing'}, found {', '.join(there) or 'nothing'}"]
    found = []
    public = [*os.environ.values(), *Path("/proc/self/cmdline").read_text().split("\0"),
              *Path("/proc/1/cmdline").read_text().split("\0")]  # fmt: skip
    for name in there:
        about = (SECRETS / name).stat()
        if about.st_mode & 0o777 != 0o400 or about.st_uid != os.getuid():
            mode = f"{about.st_mode & 0o777:o}"
            found.append(f"{SECRETS / name}: expected mode 400 of user {os.getuid()}, found {mode} of {about.st_uid}")
        try:
            text = (SECRETS / name).read_text()
        except OSError as error:
            found.append(f"{SECRETS / name}: expected a file that can be read, found {error.strerror}")
            continue
        if text and any(text in value for value in public):
            found.append(f"{name}: expected in its file alone, found in the environment or the command line")
    return found


def _reading(path: str) -> str:
    try:
        return "a file that can be read" if Path(path).read_bytes() else "an empty one"
    except OSError as error:
        return error.strerror or "none"


def _writes(folder: str) -> bool:
    probe = Path(folder, ".probe")
    try:
        probe.write_text("written")
        probe.unlink()
    except OSError:
        return False
    return True


def _memory() -> str:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        if Path(path).exists():
            text = Path(path).read_text().strip()
            return "bounded" if text.isdecimal() and int(text) < 1 << 50 else text
    return "bounded"  # not to be seen from here; tests ask Docker


# ---- what it answers -------------------------------------------------------------------------------------------------
def serve(port: int, pages: dict[str, Callable[[], Any]], host: str = "") -> None:
    """Answer these paths, from a thread; any other one is not found."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            page = pages.get(self.path)
            answer = page() if page else None
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer((host, port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def starts(data: str) -> int:
    """Count this start in its volume, and return how many there were."""
    path = Path(data, "starts")
    count = int(path.read_text()) + 1 if path.exists() else 1
    path.write_text(str(count))
    return count


def password_of(name: str) -> str:
    return (SECRETS / name).read_text()


def authenticate(url: str, user: str, password: str) -> None:
    """Log in at Elasticsearch as this program's user; waits for it, and refuses what it refuses."""
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(f"{url}/_security/_authenticate", headers={"Authorization": f"Basic {token}"})
    until = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                if json.load(answer)["username"] == user:
                    return
        except urllib.error.HTTPError as error:
            refuse([f"{url}: expected user {user} to be let in, found {error.code}: {error.read(300).decode()}"])
        except OSError as error:
            if time.monotonic() > until:
                refuse([f"{url}: expected Elasticsearch, found {error}"])
        time.sleep(0.2)


def refuse(what: list[str]) -> None:
    for problem in what:
        print(f"stand-in for {NAME}: refused: {problem}", file=sys.stderr, flush=True)
    sys.exit(1)


def own_address() -> str:
    """Return the address of its own name: containers share a loopback in the tests, and two of them the same ports."""
    return socket.gethostbyname(NAME)


# ---- keystores -------------------------------------------------------------------------------------------------------
def keystore(path: Path, arguments: list[str], entries: Iterable[str]) -> None:
    """Make a keystore, or add what comes on standard input to it."""
    if arguments == ["create"]:
        if path.exists():
            refuse([f"{path}: expected none yet"])
        path.write_text("{}")
        path.chmod(0o600)
    elif len(arguments) == 3 and arguments[:2] == ["add", "--stdin"] and arguments[2] in entries:
        path.write_text(json.dumps(json.loads(path.read_text()) | {arguments[2]: sys.stdin.readline().rstrip("\n")}))
    else:
        refuse([f"keystore: unknown: {' '.join(arguments)}"])


def in_keystore(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        refuse([f"{path}: expected a keystore, found {error}"])
        raise


_KIBANA_KEYS = tuple(f"xpack.{part}.encryptionKey" for part in ("encryptedSavedObjects", "security", "reporting"))


def elasticsearch_keystore(arguments: list[str]) -> None:
    keystore(Path(os.environ["ES_PATH_CONF"], "elasticsearch.keystore"), arguments, ["bootstrap.password"])


def kibana_keystore(arguments: list[str]) -> None:
    keystore(Path(os.environ["KBN_PATH_CONF"], "kibana.keystore"), arguments, ["elasticsearch.password", *_KIBANA_KEYS])


# ---- the programs ----------------------------------------------------------------------------------------------------
def grafana() -> None:
    serve(3000, {"/api/health": lambda: {"database": "ok"}})


class KeptStore(Store):
    """One that keeps what it was told, and each call in its journal."""

    def __init__(self, password: str, folder: Path):
        super().__init__(password)
        self.kept, self.journal, self.lock = folder / "things.json", folder / "calls.jsonl", threading.Lock()
        if self.kept.exists():
            kept = json.loads(self.kept.read_text())
            self.things, self.indices = kept["things"], kept["indices"]

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any]:
        with self.lock:
            if path == "/stand-in/indices":  # a test says what there is
                self.indices |= json.loads(body or "{}")
                return 200, self.indices
            try:
                status, answer = super().answer(method, path, headers, body)
            except (AssertionError, ValueError) as error:  # what it does not know
                status, answer = 400, {"error": f"{type(error).__name__}: {error}"}
            new = self.kept.with_suffix(".new")
            new.write_text(json.dumps({"things": self.things, "indices": self.indices}))
            new.replace(self.kept)
            user = (login(headers) or ("nobody",))[0]
            with self.journal.open("a") as journal:
                journal.write(json.dumps({"method": method, "path": path, "user": user, "status": status}) + "\n")
            return status, answer


def elasticsearch() -> None:
    kept = in_keystore(Path(os.environ["ES_PATH_CONF"], "elasticsearch.keystore"))
    if kept != {"bootstrap.password": password_of("es_elastic_password")}:
        refuse(["keystore: expected bootstrap.password alone, as it stands in the secret"])
    settings = {"discovery.type": "single-node", "xpack.security.enabled": "true"}
    if wrong := {name: os.environ.get(name) for name, value in settings.items() if os.environ.get(name) != value}:
        refuse([f"environment: expected {settings}, found {wrong}"])
    heap = re.fullmatch(r"-Xms(\d+)m -Xmx\1m", os.environ.get("ES_JAVA_OPTS", ""))
    if heap is None:
        refuse([f"ES_JAVA_OPTS: expected one size for Xms and Xmx, found {os.environ.get('ES_JAVA_OPTS')}"])
    store = KeptStore(kept["bootstrap.password"], Path(WANTED["elasticsearch"].data))
    threading.Thread(target=server_of(store, ("", 9200)).serve_forever, daemon=True).start()


class BehindElasticsearch(KibanaStore):
    """Kibana's API; who is let in decides Elasticsearch, as with the real one."""

    def __init__(self, url: str, folder: Path):
        super().__init__("")
        self.elasticsearch_url, self.kept = url, folder / "things.json"

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any]:
        if (method, path) == ("GET", "/api/status") and login(headers) is None:  # all that strangers are told
            return 200, {"status": {"overall": {"level": "available"}}}
        status, answer = super().answer(method, path, headers, body)
        if status == 200 and self.things:
            self.kept.write_text(json.dumps(self.things))
        return status, answer

    def knows(self, name: str, password: str) -> bool:
        token = base64.b64encode(f"{name}:{password}".encode()).decode()
        url = f"{self.elasticsearch_url}/_security/_authenticate"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, headers={"Authorization": f"Basic {token}"}), timeout=5
            ) as answer:
                return answer.status == 200
        except OSError:
            return False


def kibana() -> None:
    folder = Path(os.environ["KBN_PATH_CONF"])
    config = yaml.safe_load((folder / "kibana.yml").read_text())
    kept, key = in_keystore(folder / "kibana.keystore"), password_of("kibana_encryption_key")
    if kept != {"elasticsearch.password": password_of("es_kibana_password"), **dict.fromkeys(_KIBANA_KEYS, key)}:
        refuse(["keystore: expected password and three keys as they stand in the secrets"])
    if len(key) < 32:
        refuse([f"encryption key: expected 32 characters and more, found {len(key)}"])
    (url,) = config["elasticsearch.hosts"]
    authenticate(url, config["elasticsearch.username"], kept["elasticsearch.password"])
    store = BehindElasticsearch(url, Path(WANTED["kibana"].data))
    threading.Thread(target=server_of(store, ("", 5601)).serve_forever, daemon=True).start()


def filebeat_main(arguments: list[str]) -> None:
    """Filebeat is one program: it makes its keystore and runs."""
    path = Path(_FILEBEAT, "data/filebeat.keystore")
    if arguments == ["--strict.perms=false", "keystore", "create", "--force"]:
        path.write_text("{}")
        path.chmod(0o600)
    elif arguments == [*("--strict.perms=false", "keystore", "add", "ES_FILEBEAT_PASSWORD", "--stdin", "--force")]:
        path.write_text(json.dumps({"ES_FILEBEAT_PASSWORD": sys.stdin.readline().rstrip("\n")}))
    else:
        run("filebeat", arguments)


def filebeat() -> None:
    config = yaml.safe_load(Path(_FILEBEAT, "filebeat.yml").read_text())
    kept = in_keystore(Path(_FILEBEAT, "data/filebeat.keystore"))
    known = {**os.environ, **kept}

    def filled(text: str) -> str:
        return re.sub(r"\$\{(\w+)\}", lambda found: known[found[1]], text)

    output = config["output.elasticsearch"]
    authenticate(filled(output["hosts"][0]), output["username"], filled(output["password"]))

    def readable() -> list[str]:
        paths = [path for pattern in config["filebeat.inputs"][0]["paths"] for path in glob(pattern)]
        for path in paths:
            with Path(path).open("rb") as file:
                file.read(1)
        return sorted(paths)

    try:
        count = len(readable())
    except OSError as error:
        refuse([f"logs of containers: expected to read all, found {error}"])
        raise
    if not count:
        refuse(["logs of containers: expected some, found none: is DOCKER_CONTAINERS where Docker keeps them?"])
    print(f"stand-in for filebeat: {count} log files can be read", flush=True)
    serve(5066, {"/": lambda: {"beat": "filebeat"}, "/stand-in/files": readable}, "127.0.0.1")


def jaeger() -> None:
    config = yaml.safe_load(Path("/etc/jaeger/config.yaml").read_text())
    extensions = config["extensions"]
    store = extensions["jaeger_storage"]["backends"]["spans"]["elasticsearch"]
    login_as = store["auth"]["basic"]
    page = Path(extensions["jaeger_query"]["ui"]["config_file"]).read_text()
    json.loads(page)
    if "@KIBANA_URL@" in page:
        refuse(["ui.json: expected Kibana's address, found its mark"])
    authenticate(store["server_urls"][0], login_as["username"], Path(login_as["password_file"]).read_text())
    connections = {"http2": 0}

    def otlp(port: int) -> None:
        server = socket.create_server((own_address(), port))
        while True:
            connection, _ = server.accept()
            connection.settimeout(5)
            with contextlib.suppress(OSError):  # gRPC begins with HTTP/2's preface, and no more is understood here
                connections["http2"] += connection.recv(24) == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            connection.close()

    for port in (4317, 4318):
        threading.Thread(target=otlp, args=(port,), daemon=True).start()
    serve(16686, {"/": lambda: "no Jaeger", "/stand-in/connections": lambda: connections}, own_address())
    serve(13133, {"/status": lambda: {"status": "StatusOK"}}, own_address())


CORE = Path("/usr/local/bin/otelcol-core")
CORE_CONFIG = Path("/etc/otelcol-core.yaml")


def collector() -> None:
    """Answer for contrib's parts; OTLP comes to the collector's real core where the image has it."""
    config = yaml.safe_load(Path("/etc/otelcol/config.yaml").read_text())
    health = config["extensions"]["health_check"]["endpoint"]
    if not health.endswith(":13134"):
        refuse([f"health_check: expected port 13134, found {health}"])
    address = own_address()
    core = None
    if CORE.exists():
        core = subprocess.Popen([CORE, f"--config={CORE_CONFIG}"])
        signal.signal(signal.SIGTERM, lambda *_: core.terminate())
    else:
        for port in (4317, 4318):
            serve(port, {}, address)

    def healthy() -> Any:
        try:
            for port in (4317, 4318):
                socket.create_connection((address, port), timeout=2).close()
        except OSError:
            return None
        return {"status": "Server available"}

    serve(13134, {"/": healthy}, address)
    serve(8888, {"/metrics": lambda: "# no collector's own\n"}, address)
    serve(8889, {"/metrics": lambda: "# no span metrics\n"}, address)
    if core is not None:
        print("stand-in for collector: otelcol-core runs behind it", flush=True)
        sys.exit(max(core.wait(), 0))


def vllm() -> None:
    """Write the lines that a test left here, then be healthy."""
    lines = json.loads(Path("/lines.json").read_text())
    for stream, text, pause in lines:
        time.sleep(pause)
        data = text.encode("latin-1") + b"\n"  # bytes, as JSON carries them
        (sys.stdout if stream == "stdout" else sys.stderr).buffer.write(data)
        (sys.stdout if stream == "stdout" else sys.stderr).flush()
    serve(8000, {"/health": lambda: "", "/v1/models": lambda: {"data": []}})


PROGRAMS = {
    "grafana": grafana,
    "elasticsearch": elasticsearch,
    "kibana": kibana,
    "filebeat": filebeat,
    "jaeger": jaeger,
    "collector": collector,
    "vllm": vllm,
}
TOOLS = {
    "elasticsearch-keystore": elasticsearch_keystore,
    "kibana-keystore": kibana_keystore,
    "filebeat": filebeat_main,
}


def run(name: str, arguments: list[str]) -> None:
    """Look at everything, then answer until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # a first process has no default for it
    wanted = WANTED[name]
    if found := problems(wanted, arguments):
        refuse(found)
    count = starts(wanted.data) if wanted.data else 1
    if name != "vllm":  # whose every line is counted
        print(f"stand-in for {name}: has all that it was promised; start {count}", flush=True)
    PROGRAMS[name]()
    signal.pause()


if __name__ == "__main__":
    NAME, *given = sys.argv[1:]
    if NAME in TOOLS:
        TOOLS[NAME](given)
    else:
        run(NAME, given)
