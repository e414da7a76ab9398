"""`vllm-vitals up` behind passwords and TLS: its own Prometheus reads it, nobody else does."""

import base64
import stat

import bcrypt
import pytest
from support.certificates import Authority
from support.http import get
from support.up import companions, started, url_of
from support.waiting import wait_for

pytestmark = pytest.mark.waits


def both_jobs_are_up(prometheus: str) -> bool:
    targets = get(f"{prometheus}/api/v1/targets").json["data"]["activeTargets"]
    health = {each["scrapePool"]: (each["health"], each["lastError"]) for each in targets}
    assert all(health[job] == ("up", "") for job in ("vllm-vitals", "vllm-vitals-requests")), health
    return True


@pytest.fixture
def web_config(tmp_path):
    authority = Authority(tmp_path / "ca")
    pair = authority.issue("server", "vitals.example")
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    users = f"basic_auth_users:\n  me: {hashed}\n"
    tls = f"tls_server_config:\n  cert_file: {pair.cert}\n  key_file: {pair.key}\n"
    texts = {
        "passwords": users,
        "tls": tls + users,
        "client certificates": tls
        + f"  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: {authority.ca}\n",
    }

    def write(kind: str):
        path = tmp_path / "web.yml"
        path.write_text(texts[kind])
        return path

    return write


@pytest.mark.parametrize("kind", ["passwords", "tls", "client certificates"])
def test_its_own_prometheus_reads_both_pages(run_up, web_config, tmp_path, kind):
    up = run_up("--demo", "--web.config.file", web_config(kind))
    started(up)
    prometheus = url_of(up, "prometheus")
    wait_for(lambda: both_jobs_are_up(prometheus), "both jobs", seconds=30)
    assert "no scrape landed" not in up.output
    [series] = get(f"{prometheus}/api/v1/query?query=vllm_vitals_build_info").json["data"]["result"]
    assert series["metric"]["instance"] == f"127.0.0.1:{up.port}", "the address that a person knows"


def test_the_one_run_token_opens_metrics_for_prometheus_and_nothing_else(run_up, web_config, tmp_path):
    up = run_up("--demo", "--web.config.file", web_config("passwords"))
    started(up)
    file = tmp_path / "state/vllm-vitals-demo/scrape-token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    token = file.read_text()
    bearer = {"Authorization": f"Bearer {token}"}
    assert up.get("/metrics").status == 401
    assert up.get("/", bearer).status == 401
    targets = get(f"{url_of(up, 'prometheus')}/api/v1/targets").json["data"]["activeTargets"]
    [listener] = {each["scrapeUrl"].removesuffix("/metrics") for each in targets if each["scrapePool"] == "vllm-vitals"}
    assert listener.startswith("http://127.0.0.1:")
    for headers in (
        {},
        {"Authorization": "Bearer no"},
        {"Authorization": "Bearer \xe9"},
        {"Authorization": f"Basic {token}"},
    ):
        assert get(f"{listener}/metrics", headers).status == 401
    assert get(f"{listener}/metrics", bearer).status == 200
    assert get(f"{listener}/metrics/requests", bearer).status == 200
    for path in ("/", "/api/vitals", "/health/gpu", "/healthz"):
        assert get(f"{listener}{path}", bearer).status == 404
    shown = [up.output, *(" ".join(child.cmdline()) for child in companions(up).values())]
    shown += [path.read_text() for path in (tmp_path / "state").rglob("*.log")]
    shown += [str(child.environ()) for child in companions(up).values()]
    assert not [text for text in shown if token in text]
    assert up.get("/metrics", {"Authorization": "Basic " + base64.b64encode(b"me:secret").decode()}).status == 200
    assert up.interrupt() == 0
    assert not file.exists()
