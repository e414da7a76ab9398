"""The standard OpenTelemetry variables mean here what the specification says."""

import base64
import os

import pytest
from vllm_vitals import __version__
from vllm_vitals.settings.scalars import ConfigError
from vllm_vitals.tracing.spans.otlp_settings import otlp_settings, resource

GRPC = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}
HTTP = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


def where(endpoint=None, **variables):
    found = otlp_settings({f"OTEL_EXPORTER_OTLP_{name}": value for name, value in variables.items()}, endpoint)
    return found and (found.protocol, found.shown, found.secure)


def test_without_an_endpoint_no_spans_are_sent():
    assert otlp_settings({}) is None
    assert otlp_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": " ", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "") is None


@pytest.mark.parametrize(
    "off", [{"OTEL_SDK_DISABLED": "TRUE"}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_TRACES_EXPORTER": "console"}]
)
def test_what_switches_tracing_off(off):
    assert otlp_settings(GRPC | off) is None
    assert otlp_settings(off, "http://collector:4317") is None


def test_what_does_not():
    for on in ({"OTEL_SDK_DISABLED": "1"}, {"OTEL_TRACES_EXPORTER": "console, otlp"}, {"OTEL_TRACES_EXPORTER": ""}):
        assert otlp_settings(GRPC | on) is not None


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        ("http://collector:4318", "/v1/traces"),
        ("http://collector:4318/", "/v1/traces"),
        ("http://collector:4318/tenant/a/", "/tenant/a/v1/traces"),
        ("http://collector:4318/tenant?key=1", "/tenant/v1/traces?key=1"),
    ],
)
def test_the_path_is_appended_to_the_generic_endpoint(endpoint, path):
    found = otlp_settings({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})
    assert (found.host, found.port, found.path) == ("collector", 4318, path)


def test_the_traces_endpoint_is_used_as_it_is():
    assert where(TRACES_ENDPOINT="http://c:4318/x", ENDPOINT="http://other:1") == (
        "http/protobuf",
        "http://c:4318/x",
        False,
    )
    assert where(TRACES_ENDPOINT="http://c:4318") == ("http/protobuf", "http://c:4318/", False)


def test_the_flag_goes_before_the_variables():
    assert where("http://flag:4317", TRACES_ENDPOINT="http://c:4318/x") == ("grpc", "flag:4317", False)
    assert where("http://flag:4318") == ("http/protobuf", "http://flag:4318/v1/traces", False)


@pytest.mark.parametrize(
    ("endpoint", "protocol"),
    [
        ("http://c:4317", "grpc"),
        ("http://c:5555", "grpc"),
        ("http://c:4318", "http/protobuf"),
        ("https://c/v1/traces", "http/protobuf"),
        ("c:4318", "grpc"),
    ],
)
def test_the_protocol_is_vllms_unless_the_endpoint_can_only_be_http(endpoint, protocol):
    assert where(TRACES_ENDPOINT=endpoint)[0] == protocol


def test_the_variable_for_traces_says_the_protocol_before_the_generic_one():
    assert where(ENDPOINT="http://c:4318", PROTOCOL="http/protobuf", TRACES_PROTOCOL="grpc")[0] == "grpc"
    assert where(ENDPOINT="http://c:4317", PROTOCOL="http/protobuf")[:2] == (
        "http/protobuf",
        "http://c:4317/v1/traces",
    )


@pytest.mark.parametrize(
    ("variables", "secure"),
    [
        ({"ENDPOINT": "https://c:4317"}, True),
        ({"ENDPOINT": "http://c:4317", "INSECURE": "false"}, False),
        ({"ENDPOINT": "https://c:4317", "INSECURE": "true"}, True),
        ({"ENDPOINT": "c:4317"}, True),
        ({"ENDPOINT": "c:4317", "INSECURE": "true"}, False),
        ({"ENDPOINT": "c:4317", "INSECURE": "true", "TRACES_INSECURE": "false"}, True),
        ({"ENDPOINT": "unix:///run/otel.sock", "INSECURE": "true"}, False),
    ],
)
def test_the_scheme_decides_on_tls_and_insecure_where_there_is_none(variables, secure):
    assert where(**variables)[2] is secure


def test_vllms_flag_without_a_scheme_is_plain_as_in_vllm():
    assert where("collector:4317") == ("grpc", "collector:4317", False)


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [("http://c", "c:4317"), ("https://c", "c:443"), ("http://[::1]:99", "[::1]:99"), ("unix:/a", "unix:/a")],
)
def test_the_grpc_target(endpoint, shown):
    assert where(ENDPOINT=endpoint, PROTOCOL="grpc")[1] == shown


def test_headers_are_decoded_and_never_shown():
    found = otlp_settings(
        GRPC
        | {
            "OTEL_EXPORTER_OTLP_HEADERS": "x-generic=1",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "Authorization=Bearer%20s3cret, X-Tenant = a%2Cb%3D ,",
        }
    )
    assert found.headers == (("authorization", "Bearer s3cret"), ("x-tenant", "a,b="))
    assert "s3cret" not in repr(found)


def test_credentials_in_the_endpoint_become_a_header():
    found = otlp_settings({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://me:p%40ss@c:4318/v1/traces?token=t0ken"})
    assert found.headers == (("authorization", "Basic " + base64.b64encode(b"me:p@ss").decode()),)
    assert found.shown == "https://c:4318/v1/traces"
    assert found.path == "/v1/traces?token=t0ken"


def test_times_are_milliseconds_and_compression_is_gzip_unless_told():
    assert (otlp_settings(GRPC).timeout, otlp_settings(GRPC).gzip) == (10.0, True)
    found = otlp_settings(
        GRPC
        | {
            "OTEL_EXPORTER_OTLP_TIMEOUT": "250",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "1500",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        }
    )
    assert (found.timeout, found.gzip) == (1.5, False)


@pytest.mark.parametrize(("text", "seconds"), [("10", 10.0), ("99", 99.0), ("100", 0.1), ("30000", 30.0)])
def test_a_timeout_meant_for_the_python_sdk_is_not_taken_for_milliseconds(text, seconds):
    assert otlp_settings(GRPC | {"OTEL_EXPORTER_OTLP_TIMEOUT": text}).timeout == seconds


def test_the_batch_processors_variables_hold_for_us():
    assert (otlp_settings(GRPC).delay, otlp_settings(GRPC).queue) == (1.0, 16_384)
    found = otlp_settings(GRPC | {"OTEL_BSP_SCHEDULE_DELAY": "500", "OTEL_BSP_MAX_QUEUE_SIZE": "100"})
    assert (found.delay, found.queue) == (0.5, 100)
    with pytest.raises(ConfigError, match="OTEL_BSP_MAX_QUEUE_SIZE: expected spans from 1 to 1000000, found '-1'"):
        otlp_settings(GRPC | {"OTEL_BSP_MAX_QUEUE_SIZE": "-1"})


def test_certificates_are_files(tmp_path):
    ca, cert, key = (tmp_path / name for name in ("ca", "cert", "key"))
    for path in (ca, cert, key):
        path.write_text("PEM")
    found = otlp_settings(
        GRPC
        | {
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(ca),
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(cert),
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY": str(key),
        }
    )
    assert (found.certificate, found.client_certificate, found.client_key) == (ca, cert, key)


def test_old_names_are_asked_for_by_the_stability_list():
    assert not otlp_settings(GRPC).legacy_names
    assert not otlp_settings(GRPC | {"OTEL_SEMCONV_STABILITY_OPT_IN": "http,gen_ai_latest_experimental"}).legacy_names
    assert otlp_settings(GRPC | {"OTEL_SEMCONV_STABILITY_OPT_IN": "http, gen_ai/dup"}).legacy_names


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ENDPOINT", "collector:4318/v1/traces", "expected http://HOST:PORT"),
        ("ENDPOINT", "ftp://c:1", "'ftp://c:1'"),
        ("ENDPOINT", "http://:4317", "'http://:4317'"),
        ("ENDPOINT", "http://c:port", "'http://c:port'"),
        ("ENDPOINT", "http://c d:1", "found"),
        ("TRACES_ENDPOINT", "http://me:s3cret@c:x", "...@c:x"),
        ("PROTOCOL", "http/json", "expected grpc or http/protobuf, found 'http/json'"),
        ("TRACES_TIMEOUT", "10s", "expected milliseconds from 1 to 300000, found '10s'"),
        ("TIMEOUT", "0", "found '0'"),
        ("TIMEOUT", "1.5", "found '1.5'"),
        ("COMPRESSION", "zstd", "expected gzip or none, found 'zstd'"),
        ("HEADERS", "a=1,s3cret", "item 2"),
        ("HEADERS", "b ad=s3cret", "item 1"),
        ("HEADERS", "a=s3cret%0Ax", "value of 'a'"),
        ("CERTIFICATE", "/nowhere.pem", "expected a PEM file, found '/nowhere.pem'"),
        ("CLIENT_KEY", "/dev/null", "expected a PEM file beside the other half"),
    ],
)
def test_an_error_names_variable_found_and_expected_but_no_secret(name, value, words):
    with pytest.raises(ConfigError) as error:
        otlp_settings(GRPC | {f"OTEL_EXPORTER_OTLP_{name}": value})
    text = str(error.value)
    assert text.startswith("OTEL_EXPORTER_OTLP_")
    assert words in text
    assert "s3cret" not in text


def test_an_error_in_the_flag_names_the_flag():
    with pytest.raises(ConfigError, match=r"^--otlp-traces-endpoint: expected http"):
        otlp_settings({}, "ftp://c")


def test_the_resource_says_who_we_are():
    found = resource({}, {"vllm.version": "0.32.0"})
    assert found["service.name"] == "vllm"
    assert found["process.pid"] == os.getpid()
    assert found["vllm.version"] == "0.32.0"
    assert found["telemetry.sdk.name"] == "vllm-vitals"
    assert found["telemetry.sdk.version"] == __version__
    assert found["service.instance.id"] != resource({}, {})["service.instance.id"]


def test_the_operator_says_it_first():
    found = resource(
        {
            "OTEL_SERVICE_NAME": "chat",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=no, service.instance.id=a%2Cb,deployment.environment=pr%C3%B6d",
        },
        {"service.instance.id": "no", "gpu": 1},
    )
    assert found["service.name"] == "chat"
    assert found["service.instance.id"] == "a,b"
    assert found["deployment.environment"] == "pröd"
    assert found["gpu"] == 1
    assert resource({"OTEL_RESOURCE_ATTRIBUTES": "service.name=x"}, {})["service.name"] == "x"


def test_resource_attributes_without_a_name_are_an_error():
    with pytest.raises(ConfigError, match="OTEL_RESOURCE_ATTRIBUTES: expected name=value"):
        resource({"OTEL_RESOURCE_ATTRIBUTES": "a=1,b"}, {})
