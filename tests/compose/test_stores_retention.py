"""The script that keeps logs and spans within their sizes: real shells and a real curl against a server of ours."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.http import free_port
from support.programs import Program
from support.store_servers import STREAM, Store, index_of, serving
from support.waiting import wait_for
from vllm_vitals.compose.bundle import SHIPPED
from vllm_vitals.compose.passwords import SECRETS

pytestmark = pytest.mark.waits

SCRIPT = SHIPPED / "elasticsearch/retention.sh"
SHELLS = [shell for shell in ("bash", "dash", "busybox") if shutil.which(shell)]
MB = 1 << 20
BOUNDS = {
    "LOGS_RETENTION_SIZE": "100mb",
    "LOGS_ROLLOVER_SIZE": "50mb",
    "TRACES_RETENTION_SIZE": "100mb",
    "TRACES_ROLLOVER_SIZE": "50mb",
}
LOOK = ("GET", f"/_cat/indices/{STREAM}?h=index,creation.date,store.size&bytes=b&s=creation.date,index")


def log(number: int) -> str:
    return f".ds-{STREAM}-2026.01.{number:02}-{number:06}"


def span(number: int) -> str:
    return f"jaeger-span-{number:06}"


@pytest.fixture
def secrets(tmp_path) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    for name in SECRETS:
        if name.startswith("es_"):
            (folder / name).write_text(f'{name} p"a\\ss %s$(id) ü')
    return folder


@pytest.fixture
def store(secrets) -> Iterator[Store]:
    """Elasticsearch as it is after the set-up: with the users and roles of the bundle."""
    with serving(Store((secrets / "es_elastic_password").read_text())) as store:
        set_up(store, secrets)
        yield store


def set_up(store: Store, secrets: Path) -> None:
    environment = {"ELASTICSEARCH_URL": store.url, "SECRETS": str(secrets), "PATH": os.environ["PATH"]}
    subprocess.run([SHIPPED / "elasticsearch/setup.sh"], env=environment, check=True, stdout=subprocess.DEVNULL)
    store.calls.clear()


class Retention(Program):
    """The script as a program that looks every second."""

    def __init__(self, url: str, secrets: Path, *, shell: str = "bash", path: str = "", **settings: str):
        self.folder = secrets.parent / "work"
        self.folder.mkdir(exist_ok=True)
        self.env = {
            "ELASTICSEARCH_URL": url, "SECRETS": str(secrets), "RETENTION_INTERVAL": "1", "TMPDIR": str(self.folder),
            "PATH": f"{path}{os.environ['PATH']}", **BOUNDS, **settings,
        }  # fmt: skip
        command = ["busybox", "sh"] if shell == "busybox" else [shell]
        super().__init__([*command, SCRIPT], secrets.parent / "output", self.env)

    @property
    def lines(self) -> list[dict]:
        """All that it said, less what it says when it starts."""
        return [json.loads(line) for line in self.output.splitlines()][1:]

    def healthy(self) -> bool:
        return subprocess.run(["bash", SCRIPT, "--healthy"], env=self.env).returncode == 0


@pytest.fixture
def retention(store, secrets) -> Iterator[Callable[..., Retention]]:
    """Start the script on the store's indices; whatever it does, it tells no password."""
    started = []

    def start(url: str = "", **settings) -> Retention:
        started.append(Retention(url or store.url, secrets, **settings))
        return started[-1]

    yield start
    for one in started:
        one.stop()
        for name in secrets.iterdir():
            assert name.read_text() not in one.output


def looked(store: Store, times: int = 1) -> None:
    """Wait for whole looks from now on."""
    begun = store.calls.count(LOOK)
    wait_for(lambda: store.calls.count(LOOK) > begun + times, "further looks", 60)


def deleted(store: Store) -> list[str]:
    return [path.removeprefix("/") for method, path in store.calls if method == "DELETE"]


# ---- what is deleted -------------------------------------------------------------------------------------------------
def test_within_the_sizes_nothing_is_deleted(store, retention):
    store.indices |= {log(1): index_of(1, 50 * MB), log(2): index_of(2, 50 * MB)}
    store.indices |= {span(1): index_of(1, 50 * MB), span(2): index_of(2, 50 * MB, {"jaeger-span-write": True})}
    program = retention()
    looked(store)
    assert deleted(store) == []
    assert program.lines == []
    assert program.healthy()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_oldest_goes_first_until_the_rest_is_within_the_size(store, retention, shell):
    store.indices = {
        log(2): index_of(10, 40 * MB), log(1): index_of(20, 41 * MB), log(3): index_of(30, 42 * MB),
        log(4): index_of(40, 1 * MB), log(5): index_of(50, 43 * MB),
        span(1): index_of(5, MB, {"jaeger-span-write": True}),
    }  # fmt: skip
    program = retention(shell=shell)
    looked(store)
    assert deleted(store) == [log(2), log(1)]
    first, second = program.lines
    assert first["message"] == "deleted the oldest index of logs: together they were over LOGS_RETENTION_SIZE (100mb)"
    assert first["log.level"] == "info"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first["@timestamp"])
    numbers = ("index", "index_bytes", "total_bytes", "limit_bytes")
    assert [first[name] for name in numbers] == [log(2), 40 * MB, 167 * MB, 100 * MB]
    assert [second[name] for name in numbers] == [log(1), 41 * MB, 127 * MB, 100 * MB]


def test_spans_are_counted_for_themselves_and_so_are_days_of_an_earlier_version(store, retention):
    store.indices |= {
        "jaeger-span-2026-01-01": index_of(1, 60 * MB), span(1): index_of(2, 60 * MB, {"jaeger-span-write": False}),
        span(2): index_of(3, 30 * MB, {"jaeger-span-write": True}), log(1): index_of(1, 99 * MB),
    }  # fmt: skip
    program = retention()
    looked(store)
    assert deleted(store) == ["jaeger-span-2026-01-01"]
    assert [line["message"] for line in program.lines] == [
        "deleted the oldest index of spans: together they were over TRACES_RETENTION_SIZE (100mb)"
    ]


def test_what_is_written_to_stays_even_when_it_is_the_oldest(store, retention):
    store.indices = {
        log(1): index_of(3, 60 * MB), log(2): index_of(1, 60 * MB),
        span(1): index_of(1, 60 * MB, {"jaeger-span-write": True}), span(2): index_of(2, 60 * MB),
    }  # fmt: skip
    retention()
    looked(store)
    assert deleted(store) == [log(1), span(2)]


class RollingOver(Store):
    """One that rolls spans over between the first two questions about them."""

    def elasticsearch(self, method: str, path: str, body: bytes):
        answer = super().elasticsearch(method, path, body)
        if method == "GET" and "jaeger-span" in path and span(2) in self.indices and span(3) not in self.indices:
            self.indices[span(2)]["aliases"]["jaeger-span-write"] = False
            self.indices[span(3)] = index_of(3, 200 * MB, {"jaeger-span-write": True})
        return answer


def test_an_index_that_a_rollover_makes_in_the_middle_of_a_look_is_not_deleted(secrets, retention):
    with serving(RollingOver((secrets / "es_elastic_password").read_text())) as store:
        set_up(store, secrets)
        store.indices |= {span(1): index_of(1, 90 * MB), span(2): index_of(2, 120 * MB, {"jaeger-span-write": True})}
        retention(url=store.url)
        looked(store, times=2)
        assert deleted(store) == [span(1), span(2)]


def test_what_is_written_to_alone_over_the_size_is_told_once_and_its_end_too(store, retention):
    store.indices = {log(1): index_of(1, 120 * MB), span(1): index_of(1, 130 * MB, {"jaeger-span-write": True})}
    program = retention()
    looked(store, times=2)
    assert deleted(store) == []
    logs, spans = program.lines
    assert (logs["log.level"], spans["log.level"]) == ("warning", "warning")
    assert f"logs stay over LOGS_RETENTION_SIZE (100mb): {120 * MB} bytes are in {log(1)}" in logs["message"]
    assert f"spans stay over TRACES_RETENTION_SIZE (100mb): {130 * MB} bytes are in {span(1)}" in spans["message"]
    assert program.healthy()
    store.indices[log(2)] = index_of(2, MB)
    looked(store)
    assert deleted(store) == [log(1)]
    assert [line["message"].partition(":")[0] for line in program.lines[2:]] == [
        "deleted the oldest index of logs", "logs are within LOGS_RETENTION_SIZE (100mb) again",
    ]  # fmt: skip


def test_an_index_whose_size_nobody_knows_is_left_alone(store, retention):
    store.indices = {log(1): index_of(1, None), log(2): index_of(2, 80 * MB), log(3): index_of(3, 40 * MB)}
    store.indices |= {span(1): index_of(1, MB, {"jaeger-span-write": True})}
    retention()
    looked(store)
    assert deleted(store) == [log(2)]


def test_spans_that_nothing_is_written_to_are_not_touched(store, retention):
    store.indices = {log(1): index_of(1, MB), span(1): index_of(1, 900 * MB, {"jaeger-span-write": False})}
    program = retention()
    looked(store, times=2)
    assert deleted(store) == []
    assert [line["message"] for line in program.lines] == [
        "spans: expected an index that is written to, found none; nothing is deleted"
    ]
    assert not program.healthy()


# ---- what goes wrong -------------------------------------------------------------------------------------------------
def test_elasticsearch_away_is_told_once_and_the_work_is_done_when_it_is_back(secrets, retention):
    port = free_port()
    later = Store((secrets / "es_elastic_password").read_text())
    program = retention(url=f"http://127.0.0.1:{port}")
    wait_for(lambda: program.lines, "a word")
    started = time.monotonic()
    wait_for(lambda: time.monotonic() - started > 2.5, "three looks")
    (away,) = program.lines
    assert away["log.level"] == "error"
    assert f"no answer from http://127.0.0.1:{port}; tried again every 1 s" in away["message"]
    assert not program.healthy()
    with serving(later):  # where the program does not look: it must not find a store that is half filled
        set_up(later, secrets)
    later.indices |= {log(1): index_of(1, 200 * MB), log(2): index_of(2, MB)}
    with serving(later, port):
        wait_for(program.healthy, "a look that succeeds")
        assert deleted(later)[0] == log(1)
        assert program.lines[-1]["message"] == "Elasticsearch answers again"


def test_another_kind_of_trouble_is_told_and_what_can_be_done_is_done(store, secrets, retention):
    store.things["/_security/role/retention"]["indices"][0]["names"].remove(STREAM)
    store.indices |= {span(1): index_of(1, 200 * MB), span(2): index_of(2, MB, {"jaeger-span-write": True})}
    program = retention()
    looked(store)
    assert deleted(store) == [span(1)]
    assert "answered 403: " in program.lines[0]["message"]
    store.things["/_security/user/retention"]["password"] = "changed in Kibana"
    looked(store, times=2)
    errors = [line["message"] for line in program.lines if line["log.level"] == "error"]
    assert len(errors) == 2
    assert "unable to authenticate user [retention]" in errors[1]
    assert not program.healthy()


def test_a_deletion_that_is_refused_is_told_once(store, retention):
    store.indices |= {log(1): index_of(1, 200 * MB), log(2): index_of(2, MB)}
    store.faults[f"/{log(1)}"] = (503, "no master")
    program = retention()
    looked(store, times=2)
    assert len(deleted(store)) > 1
    (line,) = program.lines
    assert f"DELETE /{log(1)} answered 503: no master" in line["message"]


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [("LOGS_RETENTION_SIZE", "30", "expected a number with one of tb gb mb, found '30'"),
     ("TRACES_RETENTION_SIZE", "20mb", "")],
)  # fmt: skip
def test_a_wrong_setting_ends_it_before_anything_is_asked(store, retention, name, value, why):
    program = retention(**{name: value})
    assert program.process.wait(20) == 1
    assert f".env: {name}: {why}" in program.output if why else f"at most half of {name} ({value})" in program.output
    assert store.calls == []
    assert [*program.folder.iterdir()] == []


# ---- how it runs -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shell", SHELLS)
def test_it_ends_at_once_when_asked_to_and_leaves_nothing(store, retention, shell):
    program = retention(shell=shell, RETENTION_INTERVAL="300")
    wait_for(program.healthy, "a look")
    assert program.interrupt(signal.SIGTERM, seconds=10) == 0
    assert [*program.folder.iterdir()] == []
    assert not program.healthy()


def test_it_is_not_healthy_when_the_last_look_is_old(secrets, tmp_path):
    environment = {"TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]}
    for age, code in ((0, 0), (800, 0), (1000, 1)):
        (tmp_path / "retention.looked").write_text(f"{int(time.time()) - age}\n")
        assert subprocess.run(["bash", SCRIPT, "--healthy"], env=environment).returncode == code


def test_no_program_is_started_with_its_password(store, secrets, retention, tmp_path):
    started = tmp_path / "started"
    noted = tmp_path / "noted"
    noted.mkdir()
    for name in ("curl", "cat", "cut", "tr", "date", "mktemp", "rm", "dirname", "sleep"):
        real = shutil.which(name)
        (noted / name).write_text(f'#!/bin/sh\n{{ echo "$0 $*"; env; }} >>{started}\nexec {real} "$@"\n')
        (noted / name).chmod(0o755)
    store.indices |= {log(1): index_of(1, 200 * MB), log(2): index_of(2, MB)}
    retention(path=f"{noted}:")
    looked(store)
    assert deleted(store) == [log(1)]
    assert "curl" in started.read_text()
    assert "es_retention_password p" not in started.read_text()


def test_every_call_of_the_scripts_has_a_deadline():
    texts = {path.name: path.read_text() for path in SHIPPED.glob("elasticsearch/*.sh")}
    texts["kibana"] = (SHIPPED / "kibana/setup.sh").read_text()
    calling = {name: re.findall(r"\$\(curl [^)]+\)", text) for name, text in texts.items() if "$(curl" in text}
    assert [*calling] == ["call.sh"]
    assert all("--max-time" in call for call in calling["call.sh"])


@pytest.mark.parametrize(
    ("user", "method", "path", "status"),
    [("elastic", "DELETE", log(2), 400), ("retention", "DELETE", log(2), 400), ("retention", "DELETE", log(1), 200),
     ("retention", "DELETE", "jaeger-service-000001", 403), ("grafana_reader", "DELETE", log(1), 403),
     ("retention", "DELETE", "jaeger-span-000009", 404), ("retention", "PUT", "_security/user/retention", 403)],
)  # fmt: skip
def test_our_elasticsearch_refuses_what_the_real_one_refuses(store, secrets, user, method, path, status):
    store.indices |= {log(1): index_of(1, 1), log(2): index_of(2, 1)}
    secret = {"elastic": "es_elastic_password", "retention": "es_retention_password"}.get(user, "es_grafana_password")
    token = base64.b64encode(f"{user}:{(secrets / secret).read_text()}".encode()).decode()
    answer = store.answer(method, f"/{path}", {"Authorization": f"Basic {token}"}, b"{}")
    assert answer[0] == status, answer
