import dataclasses
import itertools
import re
import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from vllm_vitals.alerts.sla_file import load as load_sla
from vllm_vitals.exporter.http.web_config import WebConfig
from vllm_vitals.settings import typed_yaml
from vllm_vitals.settings.config import OPTIONS, BasicAuth, EngineSettings, Settings, Tls, load, unknown_variables
from vllm_vitals.settings.scalars import Address, ConfigError, Secret, read_scalar


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "vitals.yaml"
        path.write_text(text)
        return path

    return write


def settings(path: Path | None = None, environ=None, **flags: str) -> Settings:
    given = {f"--{name.replace('_', '-')}": [value] for name, value in flags.items()}
    return load(path, given, environ or {})


def problem(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, {}, {})
    return str(caught.value)


def test_without_a_file_the_defaults_are_safe():
    found = settings()
    assert found == Settings()
    assert str(found.listen) == "127.0.0.1:9836"


def test_an_empty_file_says_nothing(write):
    assert settings(write("# nothing\n")) == Settings()


def test_a_whole_file(write):
    path = write("""\
listen: "[::1]:9000"
web_config_file: ~/web.yml
engines:
  - http://127.0.0.1:8000
  - small=10.0.0.1:8001
  - name: big
    url: https://big.example/proxy/
    metrics_path: /stats
    bearer_token_file: /run/token
    tls: {ca_file: ca.pem, server_name: big, insecure_skip_verify: off}
    gpus: [0, GPU-1]
  - url: https://other.example
    basic_auth: {username: me, password_env: PASSWORD}
discovery:
  files: [/etc/targets/*.json]
  dns: [{name: _http._tcp.vllm, type: SRV}]
  refresh: 1m
raw_names: yes
scrape_timeout: 2500ms
sample_interval: 1
max_page_bytes: 1000000
gpus:
  enabled: on
  interval: 0.5s
  families: {nvlink: off, pcie: on}
host: {mode: off}
spot: {cloud: off}
health: {gpu_memory_ratio: 95%, gpu_temperature_celsius: 85, engine_stall: 2m}
log_level: debug
""")
    found = settings(path)
    assert found.listen == Address("::1", 9000)
    assert found.web_config_file == Path("~/web.yml").expanduser()
    assert [engine.server for engine in found.engines] == ["127.0.0.1:8000", "small", "big", "other.example"]
    assert found.engines[1].url == "http://10.0.0.1:8001"
    assert found.engines[2] == EngineSettings(
        url="https://big.example/proxy",
        name="big",
        metrics_path="/stats",
        bearer_token_file=Path("/run/token"),
        tls=Tls(ca_file=Path("ca.pem"), server_name="big"),
        gpus=("0", "GPU-1"),
    )
    assert found.engines[3].basic_auth == BasicAuth("me", password_env="PASSWORD")
    assert found.discovery.refresh == 60
    assert found.discovery.dns[0].type == "SRV"
    assert (found.raw_names, found.scrape_timeout, found.sample_interval) == (True, 2.5, 1.0)
    assert (found.gpus.interval, dict(found.gpus.families)) == (0.5, {"nvlink": False, "pcie": True})
    assert (found.host.mode, found.spot.cloud) == ("off", "off")  # not the false that YAML makes of off
    assert (found.health.gpu_memory_ratio, found.health.engine_stall) == (0.95, 120.0)


# what stands where, and what the error must say besides the line
WRONG = [
    ("listen: 9836\n", 1, "listen: expected HOST:PORT such as 127.0.0.1:9836, found '9836'"),
    ("listen: 127.0.0.1:70000\n", 1, "listen: expected HOST:PORT"),
    ("\nlog_level: loud\n", 2, "log_level: expected debug or info or warning or error, found 'loud'"),
    ("log_level: inf\n", 1, "did you mean 'info'?"),
    ("gpu:\n  interval: 1s\n", 1, "gpu: unknown key, did you mean 'gpus'?"),
    ("zzz: 1\n", 1, "zzz: unknown key; known keys: listen, "),
    ("gpus:\n  intervall: 1s\n", 2, "gpus.intervall: unknown key, did you mean 'interval'?"),
    (
        "gpus:\n  interval: soon\n",
        2,
        "gpus.interval: expected a duration such as 500ms, 15s or 5m, ten years at most, found 'soon'",
    ),
    ("gpus:\n  interval: 99999999999999999999s\n", 2, "ten years at most, found '99999999999999999999s'"),
    ("gpus:\n  interval: -1s\n", 2, "gpus.interval: expected a duration"),
    ("gpus:\n  interval: 10ms\n", 2, "gpus.interval: expected at least 0.1s, found 0.01s"),
    ("gpus:\n  enabled: maybe\n", 2, "gpus.enabled: expected on or off, found 'maybe'"),
    ("gpus: off\n", 1, "gpus: expected a mapping of keys, found 'off'"),
    ("gpus:\n  families:\n    powr: off\n", 3, "did you mean 'power'?"),
    ("gpus:\n  families:\n    power: off\n    power: on\n", 4, "gpus.families.power: given twice"),
    ("gpus:\n  families: [power]\n", 2, "gpus.families: expected a mapping, found a list"),
    ("raw_names: on\nraw_names: off\n", 2, "raw_names: given twice"),
    ("max_page_bytes: 1.5\n", 1, "max_page_bytes: expected a whole number, 0 or more, found '1.5'"),
    ("health:\n  gpu_memory_ratio: 98\n", 2, "health.gpu_memory_ratio: expected a share such as 0.98 or 98%"),
    ("health:\n  gpu_memory_ratio: nan\n", 2, "expected a share"),
    ("health:\n  gpu_temperature_celsius: nan\n", 2, "health.gpu_temperature_celsius: expected a number, found 'nan'"),
    ("health:\n  gpu_temperature_celsius: hot\n", 2, "expected a number, found 'hot'"),
    ("engines: http://127.0.0.1:8000\n", 1, "engines: expected a list, found 'http://127.0.0.1:8000'"),
    ("engines:\n  - 127.0.0.1:port\n", 2, "engines[0]: expected an address such as http://127.0.0.1:8000"),
    ("engines:\n  - http://a\n  - ftp://b\n", 3, "engines[1]: expected an address"),
    ("engines:\n  - http://[::1\n", 2, "expected an address"),
    ("engines:\n  - http://a..b:8000\n", 2, "expected an address"),
    ("engines:\n  - http://a:8000/metrics?x=y\n", 2, "without a query (it belongs into metrics_path)"),
    ("engines:\n  - name: a\n", 2, "engines[0]: expected the key 'url', found none"),
    ("engines:\n  - [http://a]\n", 2, "engines[0]: expected a mapping of keys, found a list"),
    ("engines:\n  - a=http://x\n  - b=http://y\n  - a=http://z\n", 4, "expected different names, found 'a' twice"),
    ("engines:\n  - url: http://a\n    ca_file: x\n", 3, "engines[0].ca_file: unknown key"),
    ("engines:\n  - url: http://a\n    tls: {ca_file: x}\n", 2, "expected an https address beside tls"),
    (
        "engines:\n  - url: http://a\n    bearer_token_env: A\n    bearer_token_file: b\n",
        2,
        "expected bearer_token_file or bearer_token_env, found both",
    ),
    ("engines:\n  - url: http://a\n    basic_auth: {}\n", 3, "engines[0].basic_auth: expected the key 'username'"),
    ("discovery:\n  dns:\n    - {name: x, type: MX}\n", 3, "expected A or AAAA or SRV, found 'MX'"),
    ("? [a]\n: 1\n", 1, "expected a name as key, found a list"),
    ("gpus:\n  families:\n    ? [a]\n    : on\n", 3, "gpus.families: expected a name as key, found a list"),
    ("- a\n- b\n", 1, "the file: expected a mapping of keys, found a list"),
    ("a: [1\nb: 2\n", 2, "not YAML"),
    ("a: 1\n--- \nb: 1\n", 2, "not YAML"),
]


@pytest.mark.parametrize(("text", "line", "words"), WRONG, ids=[words[:50] for _, _, words in WRONG])
def test_an_error_names_file_line_key_found_and_expected(write, text, line, words):
    path = write(text)
    message = problem(path)
    assert message.startswith(f"{path}:{line}: ")
    assert words in message


FILES = {"vitals.yaml": lambda path: load(path, {}, {}), "sla.yaml": load_sla, "web.yml": WebConfig}
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in itertools.pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: " + "[" * 3000 + "]" * 3000, ":1: not YAML: more than 64 levels deep"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(3000)), ":64: not YAML: more than 64 levels deep"),
        ("{a: " * 3000, ":1: not YAML: more than 64 levels deep"),
        ("a: &x\n  - *x\n", ":2: not YAML: *x lies inside itself"),
        (BOMB, ":5: not YAML: more than 100000 values"),
    ],
    ids=["list", "block", "mapping", "itself", "bomb"],
)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_deep_or_grows_is_refused_with_its_line(write, name, text, words):
    path = write(text)
    with pytest.raises(ConfigError, match=re.escape(f"{path}{words}")):
        FILES[name](path)


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(Settings)])
def test_a_section_whose_keys_are_all_commented_out_is_not_there(write, key):
    section = typed_yaml._is_section(typing.get_type_hints(Settings)[key])
    path = write(f"{key}:\n#  anything: 1\n")
    if section or getattr(Settings(), key) is None:
        assert settings(path) == Settings()
    else:  # one value that was forgotten is told
        assert problem(path).startswith(f"{path}:1: {key}: expected ")


def test_sections_in_sections_and_of_other_files_can_be_commented_out(write):
    path = write("tracing:\n  privacy:\n  audit:\ndiscovery:\n  dns:\n  # - {}\n  files:\nengines:\n# - x\n")
    assert settings(path) == Settings()
    path = write("tls_server_config:\nhttp_server_config:\nbasic_auth_users:\n# ops: x\n")
    assert WebConfig(path).tls() is None
    services = "services: [{name: vllm, selector: {job: x}, objectives: {ttft: 99% under 500ms}}]\n"
    sla = load_sla(write(services))
    assert load_sla(write(f"{services}gpus:\nevents:\nreceivers:\n  page:\nbusiness_hours:\n")) == sla
    with pytest.raises(ConfigError, match="services: expected a list, found nothing"):
        load_sla(write("services:\n# - name: vllm\n"))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert problem(tmp_path / "missing.yaml") == f"{tmp_path}/missing.yaml: cannot be read: No such file or directory"
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml: not YAML" in problem(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "engines:\n  - http://me:hunter2@host:8000\n",
        "engines:\n  - x=me:hunter2@host:8000\n",
        "engines:\n  - http://me:hunter2/@host:8000\n",
        "engines:\n  - http://hunter2@host:port\n",
        "engines:\n  - http://host:8000/metrics?token=hunter2\n",
        "engines:\n  - url: http://host\n    bearer_token: hunter2\n",
        "engines:\n  - url: http://host\n    basic_auth: me:hunter2\n",
        "engines:\n  - url: http://host\n    basic_auth: {username: me, password: hunter2}\n",
    ],
)
def test_a_secret_in_the_file_is_refused_and_not_shown(write, text):
    message = problem(write(text))
    assert "hunter2" not in message
    assert "vitals.yaml:" in message


def test_a_secret_in_a_flag_is_refused_and_not_shown():
    for text in ("http://me:hunter2@host", "me:hunter2@host:80", "x=http://hunter2@host:80"):
        with pytest.raises(ConfigError, match="--engine") as caught:
            load(None, {"--engine": [text]}, {})
        assert "hunter2" not in str(caught.value)


def test_a_flag_beats_a_variable_beats_the_file(write):
    path = write("scrape_timeout: 1s\n")
    environ = {"VLLM_VITALS_SCRAPE_TIMEOUT": "2s"}
    assert settings(path).scrape_timeout == 1
    assert settings(path, environ).scrape_timeout == 2
    assert settings(path, environ, scrape_timeout="3s").scrape_timeout == 3


EXAMPLES = {
    "--engine": ("http://a:1", "http://b:2", "http://c:3"),
    "--listen": ("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"),
    "--web.config.file": ("a.yml", "b.yml", "c.yml"),
    "--sla": ("a.yaml", "b.yaml", "c.yaml"),
    "--runbooks": ("a", "b", "c"),
    "--raw-names": ("on", "off", "on"),
    "--scrape-timeout": ("1s", "2s", "3s"),
    "--sample-interval": ("1s", "2s", "3s"),
    "--gpu-interval": ("1s", "2s", "3s"),
    "--gpus": ("on", "off", "on"),
    "--host": ("on", "off", "auto"),
    "--spot": ("aws", "gcp", "azure"),
    "--alertmanager": ("http://a:9093", "https://b/am", "http://c:9093"),
    "--log-level": ("debug", "warning", "error"),
}


@pytest.mark.parametrize("option", OPTIONS, ids=[option.flag for option in OPTIONS])
def test_each_option_can_be_said_in_three_places(tmp_path, option):
    in_file, in_variable, in_flag = EXAMPLES[option.flag]
    tree: object = [in_file] if option.key == "engines" else in_file
    for part in reversed(option.key.split(".")):
        tree = {part: tree}
    path = tmp_path / "vitals.yaml"
    path.write_text(yaml.safe_dump(tree))

    def seen(environ: dict[str, str], flags: dict[str, list[str]]) -> object:
        value: object = load(path, flags, environ)
        for part in option.key.split("."):
            value = getattr(value, part)
        return value

    environ = {option.variable: in_variable}
    wanted = [load(None, {option.flag: [text]}, {}) for text in (in_file, in_variable, in_flag)]
    for part in option.key.split("."):
        wanted = [getattr(value, part) for value in wanted]
    assert [seen({}, {}), seen(environ, {}), seen(environ, {option.flag: [in_flag]})] == wanted
    assert seen({option.variable: ""}, {}) == wanted[0]  # an empty variable says nothing


@pytest.mark.parametrize(
    "text",
    ["a:9093", "ftp://a", "http://", "http://user:password@a", "http://a/?filter=x", "http://a b", "http://a:99999"],
)
def test_an_alertmanager_that_cannot_be_asked_is_refused(text):
    with pytest.raises(ConfigError, match=r"^--alertmanager: expected an address such as http://127.0.0.1:9093, "):
        load(None, {"--alertmanager": [text]}, {})


def test_errors_of_flags_and_variables_name_them():
    with pytest.raises(ConfigError, match=r"^--listen: expected HOST:PORT"):
        load(None, {"--listen": ["9836"]}, {})
    with pytest.raises(ConfigError, match=r"^VLLM_VITALS_GPU_INTERVAL: expected at least 0.1s, found 0.001s"):
        load(None, {}, {"VLLM_VITALS_GPU_INTERVAL": "1ms"})
    with pytest.raises(ConfigError, match=r"^--engine: expected an address"):
        load(None, {"--engine": [""]}, {})
    with pytest.raises(ConfigError, match=r"^VLLM_VITALS_ENGINE: expected different names, found 'a' twice"):
        load(None, {}, {"VLLM_VITALS_ENGINE": "a=http://x,a=http://y"})


def test_several_engines_in_one_variable():
    found = settings(environ={"VLLM_VITALS_ENGINE": "a=http://x:1, http://y:2,"})
    assert [(engine.server, engine.url) for engine in found.engines] == [("a", "http://x:1"), ("y:2", "http://y:2")]


def test_misspelt_variables_are_noticed_and_those_of_kubernetes_are_not():
    environ = {"VLLM_VITALS_LISTN": "x", "VLLM_VITALS_SERVICE_HOST": "10.0.0.1", "VLLM_VITALS_PORT_80_TCP": "x"}
    assert unknown_variables(environ) == ["VLLM_VITALS_LISTN is not known, did you mean VLLM_VITALS_LISTEN?"]


@pytest.mark.parametrize(
    ("text", "server", "url"),
    [
        ("127.0.0.1:8000", "127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://[::1]:8000/", "[::1]:8000", "http://[::1]:8000"),
        ("a = https://h/x/", "a", "https://h/x"),
        ("http://h:1/a=b", "h:1", "http://h:1/a=b"),
        ("HTTP://Host", "host", "http://host"),
        ("http://bücher.example", "xn--bcher-kva.example", "http://xn--bcher-kva.example"),
    ],
)
def test_an_engine_in_one_word(text, server, url):
    engine = EngineSettings.from_scalar(text, "here")
    assert (engine.server, engine.url) == (server, url)


def outcome(work):
    """Return (value, None) or (None, what the ConfigError says)."""
    try:
        return work(), None
    except ConfigError as error:
        return None, str(error)


@given(st.text(max_size=60))
def test_any_text_is_an_engine_or_a_config_error(text):
    engine, refusal = outcome(lambda: EngineSettings.from_scalar(text, "here"))
    if engine is None:
        assert refusal.startswith("here: ")
    else:
        assert re.match(r"https?://[^/@?#]+", engine.url)
        assert EngineSettings.from_scalar(engine.url, "again").url == engine.url


@given(st.integers(0, 10**6), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400), ("", 1)]))
def test_durations(count, unit):
    assume(count * unit[1] <= 10 * 366 * 86400)  # ten years at most
    from vllm_vitals.settings.scalars import Seconds

    assert read_scalar(Seconds, f"{count}{unit[0]}", "here") == pytest.approx(count * unit[1])


KEYS = st.sampled_from(
    [field.name for field in dataclasses.fields(Settings)]
    + ["url", "name", "files", "dns", "families", "interval", "power", "zzz"]
)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(TREES)
def test_any_yaml_is_settings_or_a_config_error(tmp_path_factory, tree):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(tree))
    found, refusal = outcome(lambda: load(path, {}, {}))
    assert isinstance(found, Settings) or refusal.startswith(str(path))


def test_every_setting_has_a_reader():
    def check(kind: type) -> None:
        for hint in typing.get_type_hints(kind).values():
            parts = [part for part in (typing.get_args(hint) or (hint,)) if part is not type(None)]
            for part in parts:
                if dataclasses.is_dataclass(part) and part is not Address:
                    check(part)
                elif isinstance(part, type):
                    with pytest.raises(ConfigError):
                        read_scalar(part, "\0", "here") if part not in (str, Path) else read_scalar(part, "", "here")

    check(Settings)


def test_a_secret_hides_itself():
    assert "hunter2" not in repr(Secret("hunter2"))
    assert "hunter2" not in repr([Secret("hunter2")])


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ("sampling: {keep: [errors]}", "expected no sampling.keep beside only_traces"),
        ("audit: {file: a.jsonl, key_file: key}", "expected no audit.file beside only_traces"),
    ],
)
def test_only_traces_does_not_go_with_what_looks_at_every_request(write, others, named):
    path = write(f"tracing:\n  only_traces: on\n  {others}\n")
    assert problem(path).startswith(f"{path}:2: tracing: {named}")
    assert load(write("tracing:\n  only_traces: on\n"), {}, {}).tracing.only_traces
