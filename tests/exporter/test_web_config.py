import asyncio
import base64
import ssl
import time
from pathlib import Path

import bcrypt
import pytest
from support.certificates import Authority, Pair
from support.exposition import value
from support.http import get
from support.waiting import wait_for
from vllm_vitals.exporter.http.web_config import WebConfig
from vllm_vitals.settings.config import ConfigError

USER, PASSWORD = "prometheus", "pä:ss word"


def hashed(password: str) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "web.yml"
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def pair(authority) -> Pair:
    return authority.issue("server", "127.0.0.1")


def problem(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        WebConfig(path)
    return str(caught.value)


def allows(web: WebConfig, authorization: str | None) -> bool:
    return asyncio.run(web.allows(authorization))


def test_without_a_file_everybody_may_pass_in_plain_http():
    web = WebConfig(None)
    assert allows(web, None)
    assert (web.tls(), web.headers()) == (None, ())


def test_an_empty_file_is_no_file(write):
    web = WebConfig(write(""))
    assert allows(web, None)
    assert web.tls() is None


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, False),
        (basic(USER, PASSWORD), True),
        (basic(USER, "wrong"), False),
        (basic(USER, ""), False),
        (basic("nobody", PASSWORD), False),
        (basic("", ""), False),
        (basic("nobody", "x"), False),  # the password of the first user
        (basic("", "x"), False),
        ({"Authorization": "Basic ???"}, False),
        ({"Authorization": "Basic /w=="}, False),
        ({"Authorization": "Basic"}, False),
        ({"Authorization": "Bearer abc"}, False),
        ({"Authorization": basic(USER, PASSWORD)["Authorization"].replace("Basic", "bASIC")}, True),
    ],
)
def test_who_may_pass(write, headers, allowed):
    web = WebConfig(write(f"basic_auth_users:\n  other: {hashed('x')}\n  {USER}: {hashed(PASSWORD)}\n"))
    assert [allows(web, headers.get("Authorization")) for _ in range(2)] == [allowed, allowed]


def test_a_login_is_hashed_once(write, monkeypatch):
    web = WebConfig(write(f"basic_auth_users:\n  {USER}: {hashed(PASSWORD)}\n"))
    checks = []
    real = bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", lambda *given: checks.append(1) or real(*given))
    for _ in range(3):
        assert allows(web, basic(USER, PASSWORD)["Authorization"])
    assert len(checks) == 1


def test_wrong_logins_do_not_grow_the_memory(write):
    web = WebConfig(write(f"basic_auth_users:\n  {USER}: {hashed(PASSWORD)}\n"))

    async def attack() -> bool:
        await asyncio.gather(*(web.allows(basic(USER, str(n))["Authorization"]) for n in range(300)))
        return await web.allows(basic(USER, PASSWORD)["Authorization"])

    assert asyncio.run(attack())
    assert len(web._logins) <= 128


def test_a_long_password_is_compared_as_far_as_bcrypt_goes(write):
    web = WebConfig(write(f"basic_auth_users:\n  a: {hashed('x' * 72)}\n"))
    assert allows(web, basic("a", "x" * 100)["Authorization"])  # what Go does, too
    assert not allows(web, basic("a", "x" * 71)["Authorization"])
    assert not allows(web, basic("a", "x\0")["Authorization"])


WRONG = [
    ("basic_auth_user: {}\n", 1, "basic_auth_user: unknown key, did you mean 'basic_auth_users'?"),
    (
        "\ntls_server_config:\n  cert_fil: a\n",
        3,
        "tls_server_config.cert_fil: unknown key, did you mean 'cert_file'?",
    ),
    ("basic_auth_users:\n  a: hunter2\n", 2, "basic_auth_users.a: expected a bcrypt hash"),
    ("basic_auth_users:\n  a: $2y$10$abc\n", 2, "basic_auth_users.a: expected a bcrypt hash"),
    ("basic_auth_users: hunter2\n", 1, "basic_auth_users: expected a mapping, found text"),
    ("basic_auth_users: [hunter2]\n", 1, "basic_auth_users: expected a mapping, found a list"),
    ("tls_server_config: {}\n", 1, "expected cert_file and key_file (or cert and key), found none or one of them"),
    ("tls_server_config: {cert_file: a}\n", 1, "expected cert_file and key_file"),
    ("tls_server_config: {cert_file: no.pem, key_file: no.key}\n", 1, "no.pem"),
    ("tls_server_config: {cert_file: SERVER, key_file: CA}\n", 1, "expected usable PEM files"),
    ("tls_server_config: {cert: x, key: hunter2}\n", 1, "expected usable PEM files"),
    (
        "\ntls_server_config: {cert_file: SERVER, key_file: KEY, client_auth_type: RequireAndVerifyClientCert}\n",
        2,
        "expected client_ca_file for RequireAndVerifyClientCert, found none",
    ),
    (
        "tls_server_config: {cert_file: SERVER, key_file: KEY, client_ca_file: no.pem}\n",
        1,
        "client_ca_file no.pem",
    ),
    (
        "tls_server_config:\n  cert_file: SERVER\n  key_file: KEY\n  client_auth_type: RequireAnyClientCert\n",
        4,
        "client_auth_type: expected NoClientCert or ",
    ),
    ("tls_server_config: {cert_file: a, key_file: b, min_version: TLS14}\n", 1, "did you mean 'TLS1"),
    (
        "tls_server_config: {cert_file: a, key_file: b, min_version: TLS13, max_version: TLS12}\n",
        1,
        "expected min_version up to TLS12, found TLS13",
    ),
    ("tls_server_config: {cert_file: a, key_file: b, cipher_suites: [X]}\n", 1, "cipher_suites: expected one of"),
    (
        "tls_server_config: {cert_file: a, key_file: b, curve_preferences: [P1]}\n",
        1,
        "curve_preferences: expected one of CurveP256",
    ),
    ("tls_server_config: {cert_file: a, key_file: b, client_allowed_sans: [x]}\n", 1, "not supported here"),
    ("http_server_config:\n  headers:\n    X-Frame-Option: deny\n", 3, "did you mean 'X-Frame-Options'?"),
    ('http_server_config:\n  headers:\n    X-Frame-Options: "a\\nb: c"\n', 3, "expected one line of printable ASCII"),
    ("a: [1\n", 2, "not YAML"),
]


@pytest.mark.parametrize(("text", "line", "words"), WRONG, ids=[f"{n}" for n in range(len(WRONG))])
def test_an_error_names_file_line_and_key_and_no_secret(write, authority, pair, text, line, words):
    path = write(text.replace("SERVER", str(pair.cert)).replace("KEY", str(pair.key)).replace("CA", str(authority.ca)))
    message = problem(path)
    assert message.startswith(f"{path}:{line}: ")
    assert words in message
    assert "hunter2" not in message


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert problem(tmp_path / "no.yml") == f"{tmp_path}/no.yml: cannot be read: No such file or directory"


def test_a_key_with_a_pass_phrase_is_refused_instead_of_asked_for(write, pair):
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    path = write(f"tls_server_config: {{cert_file: {pair.cert}, key_file: locked.key}}\n")
    (path.parent / "locked.key").write_bytes(locked)
    assert "locked.key" in problem(path)


def test_paths_are_relative_to_the_file_and_every_option_is_taken(write, authority, pair):
    path = write("""\
tls_server_config:
  cert_file: server.pem
  key_file: server.key
  client_ca_file: ca.pem
  client_auth_type: VerifyClientCertIfGiven
  min_version: TLS12
  max_version: TLS13
  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]
  curve_preferences: [X25519, CurveP256]
  prefer_server_cipher_suites: true
http_server_config:
  http2: false
  headers: {X-Frame-Options: deny, Strict-Transport-Security: max-age=1}
""")
    for name, source in (("server.pem", pair.cert), ("server.key", pair.key), ("ca.pem", authority.ca)):
        (path.parent / name).write_bytes(source.read_bytes())
    web = WebConfig(path)
    context = web.tls()
    assert context is not None
    assert context.verify_mode is ssl.CERT_OPTIONAL
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert [c["name"] for c in context.get_ciphers() if c["protocol"] == "TLSv1.2"] == ["ECDHE-ECDSA-AES128-GCM-SHA256"]
    assert web.headers() == (("X-Frame-Options", "deny"), ("Strict-Transport-Security", "max-age=1"))


def test_certificate_and_key_may_stand_in_the_file(write, pair):
    def block(path: Path) -> str:
        return "|\n" + "".join(f"    {line}\n" for line in path.read_text().splitlines())

    inline = write(f"tls_server_config:\n  cert: {block(pair.cert)}  key: {block(pair.key)}")
    assert WebConfig(inline).tls() is not None
    mixed = write(f"tls_server_config:\n  cert_file: {pair.cert}\n  key: {block(pair.key)}")
    assert WebConfig(mixed).tls() is not None


def reloaded(web: WebConfig) -> None:
    """Let the next look happen now instead of in a second."""
    web._looked_at = time.monotonic() - 60


def test_a_certificate_that_comes_later_heals_a_broken_reload(write, pair):
    path = write("")
    web = WebConfig(path)
    write(f"tls_server_config: {{cert_file: late.pem, key_file: {pair.key}}}\n")
    for _ in range(3):
        reloaded(web)
        assert web.tls() is None
    assert web.reload_failures == 1
    (path.parent / "late.pem").write_bytes(pair.cert.read_bytes())
    reloaded(web)
    assert web.tls() is not None
    assert web.reload_failures == 1


def test_a_file_that_vanishes_leaves_the_last_good_one_in_use(write):
    path = write(f"basic_auth_users:\n  {USER}: {hashed(PASSWORD)}\n")
    web = WebConfig(path)
    path.unlink()
    reloaded(web)
    assert not allows(web, None)
    assert web.reload_failures == 1


def test_basic_auth_end_to_end_with_rotation(run_exporter, write):
    path = write(
        f"basic_auth_users:\n  {USER}: {hashed(PASSWORD)}\nhttp_server_config:\n  headers: {{X-Frame-Options: deny}}\n"
    )
    exporter = run_exporter("--web.config.file", path, wait=False)
    exporter.ready(f"{exporter.url}/healthz", status=401)
    for route in ("/metrics", "/", "/api/vitals", "/health/gpu", "/nowhere"):
        answer = exporter.get(route)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Basic")
        assert "vllm_vitals" not in answer.text
    good = exporter.get("/metrics", basic(USER, PASSWORD))
    assert good.status == 200
    assert good.headers["x-frame-options"] == "deny"
    assert exporter.get("/metrics", basic(USER, "wrong")).status == 401

    write(f"basic_auth_users:\n  {USER}: {hashed('new')}\n")
    wait_for(lambda: exporter.get("/metrics", basic(USER, "new")).status == 200, "the new password")
    assert exporter.get("/metrics", basic(USER, PASSWORD)).status == 401

    write("basic_auth_users: [\n")

    def failures() -> float:
        return value(exporter.get("/metrics", basic(USER, "new")).text, "vllm_vitals_web_config_reload_failures_total")

    wait_for(lambda: failures() == 1, "the failure")
    assert exporter.get("/metrics").status == 401
    assert "the last good one stays in use" in exporter.output
    for secret in (PASSWORD, "$2b$"):
        assert secret not in exporter.output


def test_tls_end_to_end_with_client_certificates_and_rotation(run_exporter, write, authority, pair, tmp_path):
    stranger = Authority(tmp_path / "stranger", "stranger")
    mine = authority.issue("prometheus", "prometheus", client=True)
    theirs = stranger.issue("prometheus", "prometheus", client=True)
    path = write(f"""\
tls_server_config:
  cert_file: server.pem
  key_file: server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: {authority.ca}
""")
    (path.parent / "server.pem").write_bytes(pair.cert.read_bytes())
    (path.parent / "server.key").write_bytes(pair.key.read_bytes())
    exporter = run_exporter("--web.config.file", path, wait=False)
    url = exporter.url.replace("http:", "https:")

    def client(ca: Path, shown: Pair | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(ca))
        if shown is not None:
            context.load_cert_chain(shown.cert, shown.key)
        return context

    good = client(authority.ca, mine)
    wait_for(lambda: get(f"{url}/healthz", context=good).status == 200, "the exporter")
    page = get(f"{url}/metrics", context=good)
    assert page.status == 200
    assert f"live page  {url}/" in exporter.output
    for shown in (None, theirs):
        with pytest.raises(OSError, match=r"(?i)ssl|tls|reset|eof|closed"):
            get(f"{url}/metrics", context=client(authority.ca, shown))
    with pytest.raises(OSError, match=r"(?i)reset|closed|aborted"):
        exporter.get()  # plain HTTP
    rejected = value(
        get(f"{url}/metrics", context=good).text, "vllm_vitals_http_rejected_total", reason="tls_handshake"
    )
    assert rejected >= 1

    renewed = stranger.issue("server", "127.0.0.1")
    (path.parent / "server.pem").write_bytes(renewed.cert.read_bytes())
    (path.parent / "server.key").write_bytes(renewed.key.read_bytes())
    trusting = client(stranger.ca, mine)
    wait_for(lambda: get(f"{url}/healthz", context=trusting).status == 200, "the new certificate")
    assert exporter.interrupt() == 0


def test_a_wrong_file_ends_the_start_with_code_2(run_exporter, write):
    path = write("basic_auth_users:\n  me: hunter2\n")
    exporter = run_exporter("--web.config.file", path, wait=False)
    assert exporter.process.wait(20) == 2
    assert exporter.output.startswith(f"vllm-vitals: {path}:2: basic_auth_users.me: expected a bcrypt hash")
    assert "hunter2" not in exporter.output
