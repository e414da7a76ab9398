import json
import threading

import pytest
import yaml
from support import faulty_server as faulty
from support.dns_server import DnsServer
from support.exposition import labels_of, value, values
from support.faulty_server import FaultyServer, page
from support.http import free_port
from support.waiting import wait_for
from vllm_vitals.exporter.engines.discovery import MAX_SERVERS, ServerList
from vllm_vitals.settings.config import Discovery, DnsDiscovery, EngineSettings
from vllm_vitals.settings.scalars import Address, Port

PAGE = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1.0\n"


def listed(servers: ServerList) -> dict[str, tuple[str, str]]:
    return {engine.server: (engine.url, origin) for engine, origin in servers.servers()}


def from_files(*patterns: object) -> ServerList:
    servers = ServerList((), Discovery(files=tuple(map(str, patterns))))
    servers.refresh()
    return servers


GROUPS = [
    {"targets": ["10.0.0.1:8000"], "labels": {"server": "llama"}},
    {"targets": ["10.0.0.2:8000", "https://10.0.0.3"], "labels": {"name": "ignored for two"}},
    {"targets": ["10.0.0.4:1"], "labels": {"__scheme__": "https", "__metrics_path__": "/stats", "team": "a"}},
    {"targets": []},
]
FOUND = {
    "llama": ("http://10.0.0.1:8000", "file"),
    "10.0.0.2:8000": ("http://10.0.0.2:8000", "file"),
    "10.0.0.3": ("https://10.0.0.3", "file"),
    "10.0.0.4:1": ("https://10.0.0.4:1", "file"),
}


@pytest.mark.parametrize("name", ["targets.json", "targets.yaml"])
def test_file_sd_groups(tmp_path, name):
    (tmp_path / name).write_text(json.dumps(GROUPS) if name.endswith("json") else yaml.safe_dump(GROUPS))
    servers = from_files(tmp_path / "*")
    assert listed(servers) == FOUND
    assert [engine.metrics_path for engine, _ in servers.servers()] == ["", "", "", "/stats"]
    assert not servers.failures


def test_an_empty_file_and_a_pattern_without_files_find_nothing(tmp_path):
    (tmp_path / "empty.yaml").touch()
    servers = from_files(tmp_path / "empty.yaml", tmp_path / "*.json")
    assert listed(servers) == {}
    assert not servers.failures


BROKEN = [
    "[",
    "{}",
    "[1]",
    '[{"targets": "a:1"}]',
    '[{"targets": ["a:port"]}]',
    '[{"targets": ["a:1"], "labels": ["server"]}]',
    '[{"targets": [["a"]]}]',
    "\0",
    "!!python/object:os.system x",
    "[" * 3000,
    "&a [*a]",
    "[2026-99-99]",
]


@pytest.mark.parametrize("content", [None, *BROKEN])
def test_a_broken_file_keeps_the_last_good_list_and_is_counted(tmp_path, caplog, content):
    path = tmp_path / "targets.json"
    path.write_text('[{"targets": ["a:1"]}]')
    servers = from_files(path)
    path.unlink() if content is None else path.write_text(content)
    servers.refresh()
    servers.refresh()
    assert listed(servers) == {"a:1": ("http://a:1", "file")}
    assert servers.failures == {"file": 2}
    assert len(caplog.records) == 1  # said once
    assert str(path) in caplog.text
    path.write_text('[{"targets": ["b:1"]}]')
    servers.refresh()
    assert listed(servers) == {"b:1": ("http://b:1", "file")}


def test_a_broken_file_takes_no_other_down(tmp_path):
    (tmp_path / "a.json").write_text("[")
    (tmp_path / "b.json").write_text('[{"targets": ["b:1"]}]')
    servers = from_files(tmp_path / "a.json", tmp_path / "b.json")
    assert listed(servers) == {"b:1": ("http://b:1", "file")}


def test_names_are_unique_and_nothing_is_lost(tmp_path):
    static = (EngineSettings("http://a:1"), EngineSettings("http://b:1", name="llama"))
    groups = [
        {"targets": ["a:1"]},
        *({"targets": [target], "labels": {"server": "llama"}} for target in ("c:1", "d:1")),
    ]
    (tmp_path / "x.json").write_text(json.dumps(groups))
    servers = ServerList(static, Discovery(files=(f"{tmp_path}/x.json",)))
    servers.refresh()
    assert listed(servers) == {
        "a:1": ("http://a:1", "config"),
        "llama": ("http://b:1", "config"),
        "c:1": ("http://c:1", "file"),
        "d:1": ("http://d:1", "file"),
    }


def test_the_number_of_servers_is_bounded(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([{"targets": [f"h{n}:1" for n in range(MAX_SERVERS + 5)]}]))
    assert len(listed(from_files(tmp_path / "x.json"))) == MAX_SERVERS


def test_what_a_search_of_the_machine_found_stays(tmp_path):
    found = [[EngineSettings("http://127.0.0.1:8000")], []]
    known = []

    def finder(seen: frozenset[str]) -> list[EngineSettings]:
        known.append(seen)
        return found.pop(0)

    servers = ServerList((), Discovery(), finder)
    servers.refresh()
    servers.refresh()
    assert listed(servers) == {"127.0.0.1:8000": ("http://127.0.0.1:8000", "process")}
    assert known == [frozenset(), {"127.0.0.1:8000"}]


def over_dns(server: DnsServer, **entry) -> ServerList:
    nameserver = Address(*(part if n == 0 else int(part) for n, part in enumerate(server.address.split(":"))))
    servers = ServerList((), Discovery(dns=(DnsDiscovery(nameserver=nameserver, **entry),)))
    servers.refresh()
    return servers


def test_dns_addresses():
    records = {("vllm.test", "A"): ["10.0.0.2", "10.0.0.1"], ("vllm.test", "AAAA"): ["fd00::1"]}
    with DnsServer(records) as server:
        assert listed(over_dns(server, name="vllm.test", port=Port(8001))) == {
            "10.0.0.1:8001": ("http://10.0.0.1:8001", "dns"),
            "10.0.0.2:8001": ("http://10.0.0.2:8001", "dns"),
        }
        assert listed(over_dns(server, name="vllm.test", type="AAAA", scheme="https")) == {
            "[fd00::1]:8000": ("https://[fd00::1]:8000", "dns")
        }
        assert server.questions == [("vllm.test", "A"), ("vllm.test", "AAAA")]


def test_dns_srv_records_bring_their_ports():
    records = {("_http._tcp.vllm.test", "SRV"): ["0 1 8001 b.vllm.test.", "0 1 8000 a.vllm.test."]}
    with DnsServer(records) as server:
        assert listed(over_dns(server, name="_http._tcp.vllm.test", type="SRV")) == {
            "a.vllm.test:8000": ("http://a.vllm.test:8000", "dns"),
            "b.vllm.test:8001": ("http://b.vllm.test:8001", "dns"),
        }


def test_dns_that_fails_keeps_the_last_good_list_and_is_counted():
    with DnsServer({("vllm.test", "A"): ["10.0.0.1"]}) as server:
        servers = over_dns(server, name="vllm.test")
        server.failing = True
        servers.refresh()
        assert listed(servers) == {"10.0.0.1:8000": ("http://10.0.0.1:8000", "dns")}
        assert servers.failures == {"dns": 1}
        server.failing = False
        server.records = {("vllm.test", "A"): ["10.0.0.9"]}
        servers.refresh()
        assert listed(servers) == {"10.0.0.9:8000": ("http://10.0.0.9:8000", "dns")}


def test_a_name_that_does_not_exist_is_a_failure():
    with DnsServer({}) as server:
        assert over_dns(server, name="nowhere.test").failures == {"dns": 1}


def test_servers_come_and_go_on_the_page(run_exporter, tmp_path):
    targets = tmp_path / "targets.json"

    def write(*groups: object) -> None:
        targets.write_text(json.dumps(groups))

    with FaultyServer(a=page(PAGE), b=page(PAGE)) as engines, DnsServer({("vllm.test", "A"): ["127.0.0.1"]}) as dns:
        write({"targets": [f"{engines.url}/a"], "labels": {"server": "first"}})
        config = tmp_path / "vitals.yaml"
        config.write_text(f"""\
discovery:
  refresh: 1s
  files: [{targets}]
  dns: [{{name: vllm.test, port: {engines.port}, nameserver: "{dns.address}"}}]
""")
        exporter = run_exporter("--config", config)

        def up() -> dict[str, float]:
            text = exporter.page()
            found = labels_of(text, "vllm_vitals_server_up")
            return {row["server"]: value(text, "vllm_vitals_server_up", **row) for row in found}

        address = f"127.0.0.1:{engines.port}"
        wait_for(lambda: up() == {"first": 1, address: 0}, "both origins")  # the address alone has no page: 404
        text = exporter.page()
        assert values(text, "vllm:num_requests_running", server="first") == [1]
        assert values(text, "vllm_vitals_discovery_servers", origin="file") == [1]
        assert values(text, "vllm_vitals_discovery_servers", origin="dns") == [1]

        write({"targets": [f"{engines.url}/b"], "labels": {"server": "second"}})
        wait_for(lambda: up() == {"second": 1, address: 0}, "the other server")
        assert not values(exporter.page(), "vllm:num_requests_running", server="first")

        targets.write_text("[")
        wait_for(
            lambda: values(exporter.page(), "vllm_vitals_discovery_failures_total", origin="file") > [0], "the failure"
        )
        assert up() == {"second": 1, address: 0}


def test_a_server_that_leaves_in_mid_scrape_takes_no_scrape_down(run_exporter, tmp_path):
    targets = tmp_path / "targets.json"
    gone = {"targets": [f"127.0.0.1:{free_port()}"]}
    with FaultyServer(sick=faulty.hang, healthy=page(PAGE)) as engines:
        targets.write_text(json.dumps([{"targets": [f"{engines.url}/sick"], "labels": {"server": "sick"}}]))
        config = tmp_path / "vitals.yaml"
        config.write_text(f"discovery: {{refresh: 1s, files: [{targets}]}}\n")
        exporter = run_exporter("--config", config, "--engine", f"healthy={engines.url}/healthy")
        wait_for(lambda: len(engines.seen("sick")) > 0, "the first look")
        answers = []
        scrape = threading.Thread(
            target=lambda: answers.append(
                exporter.get(headers={"X-Prometheus-Scrape-Timeout-Seconds": "30"}, timeout=60)
            )
        )
        before = len(engines.seen("healthy"))
        scrape.start()
        wait_for(lambda: len(engines.seen("healthy")) > before, "the scrape to be under way")
        targets.write_text(json.dumps([gone]))
        scrape.join(20)
        assert not scrape.is_alive(), "the scrape waits for a server that left"
        (answer,) = answers
        assert answer.status == 200
        assert value(answer.text, "vllm_vitals_server_up", server="healthy") == 1
        assert value(answer.text, "vllm_vitals_server_up", server="sick", reason="removed") == 0
