import asyncio
import gzip
import os
import socket
import ssl
import threading
import zlib
from pathlib import Path

import pytest
from support import faulty_server as faulty
from support.certificates import Authority
from support.faulty_server import FaultyServer, page
from support.http import free_port
from vllm_vitals.exporter.engines.page_client import FetchError, PageClient
from vllm_vitals.settings.config import BasicAuth, EngineSettings, Tls
from vllm_vitals.settings.scalars import ConfigError

PAGE = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1.0\n"
LIMIT = 100_000


def fetch(url: str, *, timeout: float = 5.0, limit: int = LIMIT, times: int = 1, **settings) -> list[object]:
    """Return, for each of several fetches over one client, the page or the FetchError."""

    async def run() -> list[object]:
        client = PageClient(EngineSettings(url=url, **settings), limit)
        results: list[object] = []
        for _ in range(times):
            try:
                results.append(await client.metrics(timeout))
            except FetchError as error:
                results.append(error)
        client.close()
        return results

    return asyncio.run(run())


def failure(url: str, **settings) -> FetchError:
    (result,) = fetch(url, **settings)
    assert isinstance(result, FetchError), result
    return result


def reason(behaviour: faulty.Behaviour, **settings) -> str:
    with FaultyServer(x=behaviour) as server:
        return failure(f"{server.url}/x", **settings).reason


@pytest.mark.parametrize(
    ("expected", "behaviour"),
    [
        ("unauthorized", faulty.status(401, "www-authenticate: Basic")),
        ("unauthorized", faulty.status(403)),
        ("redirect", faulty.status(302, "location: /metrics")),
        ("http_status", faulty.status(500)),
        ("http_status", faulty.status(404)),
        ("closed", faulty.raw(b"")),
        ("closed", faulty.reset),
        ("protocol", faulty.raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")),
        ("protocol", faulty.raw(b"\x16\x03\x01\x00\x00\r\n\r\n")),
        ("protocol", faulty.raw(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000)),
        ("truncated", faulty.raw(b"HTTP/1.1 200 OK\r\ncontent-ty")),
        ("truncated", faulty.raw(faulty.head(200, "content-type: text/plain", "content-length: 999") + PAGE)),
        (
            "truncated",
            faulty.raw(
                faulty.head(200, "content-type: text/plain", "transfer-encoding: chunked") + b"%x\r\n" % 999 + PAGE
            ),
        ),
        ("not_metrics", page(b"<html>\n", "text/html")),
        ("not_metrics", page(PAGE, "application/openmetrics-text; version=1.0.0")),
        ("too_large", page(b"x" * (LIMIT + 1))),
        ("too_large", faulty.endless(b"x" * 1000, 200)),
        ("too_large", page(gzip.compress(b"\n" * (LIMIT + 1)), headers=("content-encoding: gzip",))),
        ("truncated", page(gzip.compress(PAGE)[:-9], headers=("content-encoding: gzip",))),
        ("encoding", page(b"no gzip", headers=("content-encoding: gzip",))),
        ("encoding", page(PAGE, headers=("content-encoding: br",))),
        ("encoding", page(gzip.compress(PAGE) + PAGE, headers=("content-encoding: gzip",))),
    ],
)
def test_each_wrong_answer_has_its_reason(expected, behaviour):
    assert reason(behaviour) == expected


def test_a_page_larger_than_allowed_is_refused_before_it_is_read():
    def promise(peer: faulty.Peer) -> bool:
        peer.send(faulty.head(200, "content-type: text/plain", f"content-length: {1 << 40}"))
        return faulty.hang(peer)

    assert reason(promise, timeout=20) == "too_large"


@pytest.mark.parametrize("behaviour", [faulty.hang, faulty.drip(b"x 1\n" * 1000, 0.02)], ids=["hang", "drip"])
def test_a_server_that_takes_its_time_ends_at_the_deadline(behaviour):
    assert reason(behaviour, timeout=0.3) == "timeout"


def test_nobody_listening_is_refused():
    assert failure(f"http://127.0.0.1:{free_port()}").reason == "refused"


def test_nobody_listening_on_a_name_is_refused():
    assert failure(f"http://localhost:{free_port()}").reason == "refused"


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "x" * 70 + ".example"])
def test_a_name_that_does_not_resolve_is_dns(host):
    assert failure(f"http://{host}:8000").reason == "dns"


def test_a_name_with_several_addresses_is_tried_until_one_answers():
    with FaultyServer(x=page(PAGE)) as server:
        assert fetch(f"http://localhost:{server.port}/x") == [PAGE]


def test_a_lookup_that_hangs_holds_one_thread_and_no_other_work(monkeypatch):
    released = threading.Event()
    lookups = []

    def slow(*_: object, flags: int, **__: object) -> list[object]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not numeric")
        lookups.append(1)
        released.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "released")

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    async def run() -> tuple[set[str], int]:
        client = PageClient(EngineSettings(url="http://slow.example:8000"), LIMIT)
        reasons = set()
        for _ in range(5):
            with pytest.raises(FetchError) as caught:
                await client.metrics(0.05)
            reasons.add(caught.value.reason)
        return reasons, await asyncio.wait_for(asyncio.to_thread(lambda: 7), 5.0)

    try:
        assert asyncio.run(run()) == ({"timeout"}, 7)  # and the loop's own threads end at once, too
        assert len(lookups) == 1
    finally:
        released.set()


def test_encoded_pages_are_decoded():
    for encoded, name in (
        (gzip.compress(PAGE), "gzip"),
        (zlib.compress(PAGE), "deflate"),
    ):
        with FaultyServer(x=page(encoded, headers=(f"content-encoding: {name}",))) as server:
            assert fetch(f"{server.url}/x") == [PAGE]


def test_a_connection_is_kept_between_pages():
    with FaultyServer(x=page(PAGE)) as server:
        assert fetch(f"{server.url}/x", times=3) == [PAGE] * 3
        assert [request.connection for request in server.requests] == [1, 1, 1]


def test_a_kept_connection_that_the_server_closed_meanwhile_is_no_error():
    with FaultyServer(x=page(PAGE, keep=False)) as server:
        assert fetch(f"{server.url}/x", times=3) == [PAGE] * 3
        assert [request.connection for request in server.requests] == [1, 2, 3]


def test_a_kept_connection_on_which_a_proxy_said_goodbye_is_no_error():
    def goodbye(peer: faulty.Peer) -> bool:
        page(PAGE)(peer)
        peer.send(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        return False

    with FaultyServer(x=faulty.in_turn(goodbye, page(PAGE))) as server:
        assert fetch(f"{server.url}/x", times=2) == [PAGE] * 2


def test_connection_close_is_honoured():
    with FaultyServer(x=page(PAGE, headers=("connection: close",))) as server:
        assert fetch(f"{server.url}/x", times=2) == [PAGE] * 2
        assert [request.connection for request in server.requests] == [1, 2]


def test_http_1_0_without_a_length_is_read_to_its_end():
    with FaultyServer(x=faulty.raw(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\n" + PAGE)) as server:
        assert fetch(f"{server.url}/x", times=2) == [PAGE] * 2


@pytest.mark.parametrize(
    ("url", "metrics_path", "asked"),
    [
        ("", "", "/metrics"),
        ("/", "", "/metrics"),
        ("/proxy/a", "", "/proxy/a/metrics"),
        ("/proxy/metrics", "", "/proxy/metrics"),
        ("", "/stats?format=prometheus&x=a%20b", "/stats?format=prometheus&x=a%20b"),
        ("", "stats", "/stats"),
        ("/with blank/ä", "", "/with%20blank/%C3%A4/metrics"),
    ],
)
def test_the_path_asked_for(url, metrics_path, asked):
    with FaultyServer(**{"*": page(PAGE)}) as server:
        assert fetch(server.url + url, metrics_path=metrics_path) == [PAGE]
        assert server.requests[0].path == asked


def test_health_stands_beside_the_metrics():
    async def run(url: str) -> int:
        client = PageClient(EngineSettings(url=url), LIMIT)
        try:
            return await client.health(5.0)
        finally:
            client.close()

    with FaultyServer() as server:
        server.health = faulty.status(503)
        assert asyncio.run(run(f"{server.url}/proxy/a")) == 503
        assert asyncio.run(run(f"{server.url}/proxy/a/metrics")) == 503
        assert {request.path for request in server.requests} == {"/proxy/a/health"}


def test_a_token_file_is_read_at_each_request(tmp_path):
    token = tmp_path / "token"
    token.write_text("first\n")
    with FaultyServer(x=page(PAGE)) as server:

        async def run() -> None:
            client = PageClient(EngineSettings(url=f"{server.url}/x", bearer_token_file=token), LIMIT)
            await client.metrics(5.0)
            token.write_text("second")
            await client.metrics(5.0)
            client.close()

        asyncio.run(run())
        assert [r.headers["authorization"] for r in server.requests] == ["Bearer first", "Bearer second"]
        assert [r.connection for r in server.requests] == [1, 1]


def test_a_token_may_stand_in_a_variable(monkeypatch):
    monkeypatch.setenv("ENGINE_TOKEN", "abc")
    with FaultyServer(x=page(PAGE)) as server:
        fetch(f"{server.url}/x", bearer_token_env="ENGINE_TOKEN")
        assert server.requests[0].headers["authorization"] == "Bearer abc"


def test_basic_auth_is_utf8(tmp_path):
    (tmp_path / "password").write_text("pä:ss\n", encoding="utf-8")
    with FaultyServer(x=page(PAGE)) as server:
        fetch(f"{server.url}/x", basic_auth=BasicAuth("me", password_file=tmp_path / "password"))
        assert server.requests[0].headers["authorization"] == "Basic bWU6cMOkOnNz"


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"line\nanother", b"t\xc3\xb6ken", b"nul\0"])
def test_a_token_that_cannot_be_sent_is_a_reason_that_does_not_show_it(tmp_path, content):
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with FaultyServer(x=page(PAGE)) as server:
        error = failure(f"{server.url}/x", bearer_token_file=path)
        assert error.reason == "credentials"
        assert str(path) in error.detail
        assert "another" not in str(error)
        assert not server.requests


def test_a_variable_that_is_not_set_is_a_reason():
    assert "NO_SUCH_VARIABLE" not in os.environ
    error = failure("http://127.0.0.1:1", bearer_token_env="NO_SUCH_VARIABLE")
    assert (error.reason, "NO_SUCH_VARIABLE" in error.detail) in {("credentials", True), ("refused", False)}


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"), "other CA")


def tls_server(authority: Authority, *names: str, client_ca: Path | None = None) -> FaultyServer:
    pair = authority.issue("engine-" + names[0], *names)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.cert, pair.key)
    if client_ca is not None:
        # with 1.3 the server says no after the handshake, and its RST may overtake that word
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return FaultyServer(tls=context, x=page(PAGE))


def test_tls_with_the_engines_own_ca(authority):
    with tls_server(authority, "127.0.0.1") as server:
        assert fetch(f"{server.url}/x", tls=Tls(ca_file=authority.ca), times=2) == [PAGE] * 2


def test_https_to_a_server_without_tls_says_so():
    with FaultyServer(x=page(PAGE)) as server:
        found = failure(f"https://127.0.0.1:{server.port}/x")
    assert found.reason == "tls"
    assert found.detail.startswith("the server speaks no TLS there, write http://: ")


def test_tls_with_a_wrong_ca_is_refused(authority, other_authority):
    with tls_server(authority, "127.0.0.1") as server:
        for tls in (None, Tls(ca_file=other_authority.ca)):
            assert failure(f"{server.url}/x", tls=tls).reason == "tls"


def test_tls_checks_the_name_unless_another_is_stated(authority):
    with tls_server(authority, "engine.internal") as server:
        assert failure(f"{server.url}/x", tls=Tls(ca_file=authority.ca)).reason == "tls"
        tls = Tls(ca_file=authority.ca, server_name="engine.internal")
        assert fetch(f"{server.url}/x", tls=tls) == [PAGE]


def test_tls_verification_can_be_switched_off(authority):
    with tls_server(authority, "engine.internal") as server:
        assert fetch(f"{server.url}/x", tls=Tls(insecure_skip_verify=True)) == [PAGE]


def test_tls_with_a_client_certificate(authority, other_authority):
    mine = authority.issue("client", "sidecar", client=True)
    wrong = other_authority.issue("client", "sidecar", client=True)
    with tls_server(authority, "127.0.0.1", client_ca=authority.ca) as server:
        shown = Tls(ca_file=authority.ca, cert_file=mine.cert, key_file=mine.key)
        assert fetch(f"{server.url}/x", tls=shown) == [PAGE]
        for tls in (
            Tls(ca_file=authority.ca),
            Tls(ca_file=authority.ca, cert_file=wrong.cert, key_file=wrong.key),
        ):
            assert failure(f"{server.url}/x", tls=tls).reason == "tls"


def test_tls_to_a_plain_server_is_tls():
    with FaultyServer(x=page(PAGE)) as server:
        assert failure(f"https://127.0.0.1:{server.port}/x").reason == "tls"


def test_plain_http_to_a_tls_server_is_no_page(authority):
    with tls_server(authority, "127.0.0.1") as server:
        assert failure(f"http://127.0.0.1:{server.port}/x").reason in {"protocol", "closed"}


@pytest.mark.parametrize("field", ["ca_file", "cert_file"])
def test_unusable_tls_files_are_named_at_start(tmp_path, field):
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for path in (empty, tmp_path / "missing.pem"):
        with pytest.raises(ConfigError, match=path.name):
            PageClient(EngineSettings(url="https://127.0.0.1:1", tls=Tls(**{field: path})), LIMIT)


def test_a_key_with_a_pass_phrase_is_refused_instead_of_asked_for(tmp_path, authority):
    from cryptography.hazmat.primitives import serialization

    pair = authority.issue("locked", "sidecar", client=True)
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match="tls"):
        PageClient(EngineSettings(url="https://127.0.0.1:1", tls=Tls(cert_file=pair.cert, key_file=locked)), LIMIT)
