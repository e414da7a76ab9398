"""Every key of the configurations whose programs cannot be had here, against what the pinned versions know.

A file that uses a key that is not listed fails: whoever adds one reads the documentation and adds it here.
"""

import json
import re
from dataclasses import replace

import pytest
import yaml
from support import log_lines
from support.finished_requests import request, sequence
from vllm_vitals.compose import env_file
from vllm_vitals.compose.bundle import SHIPPED
from vllm_vitals.tracing.request.records import Gpu, Http, Trace
from vllm_vitals.tracing.spans.otlp_settings import resource
from vllm_vitals.tracing.spans.tree import spans_of

PINS = env_file.settings((SHIPPED / ".env.example").read_text())
ANY = object()  # a value, or a tree that is not looked into


def unknown(config, known, path="") -> list[str]:
    """Return the paths of a configuration that a tree of known keys does not have; `*` in it is any name."""
    if known is ANY or not isinstance(config, dict):
        if isinstance(config, list) and isinstance(known, list):
            return [one for number, item in enumerate(config) for one in unknown(item, known[0], f"{path}[{number}]")]
        return [] if known is ANY or not isinstance(known, dict) or config is None else [path]
    if not isinstance(known, dict):
        return [path]
    found = []
    for key, value in config.items():
        if key in known:
            found += unknown(value, known[key], f"{path}.{key}")
        elif "*" in known:
            found += unknown(value, known["*"], f"{path}.{key}")
        else:
            found.append(f"{path}.{key}".lstrip("."))
    return found


def keys(text: str) -> dict:
    return dict.fromkeys(text.split(), ANY)


def dotted(config) -> dict:
    """Return a configuration with dotted keys taken apart, as Filebeat reads it."""
    if isinstance(config, list):
        return [dotted(one) for one in config]
    if not isinstance(config, dict):
        return config
    result: dict = {}
    for key, raw in config.items():
        inner = result
        *parents, last = key.split(".")
        for parent in parents:
            inner = inner.setdefault(parent, {})
        value = dotted(raw)
        if isinstance(value, dict) and isinstance(inner.get(last), dict):
            inner[last] |= value
        else:
            inner[last] = value
    return result


# elastic/beats docs/reference/filebeat at 9.5: filebeat-input-filestream.md, rename-fields.md, drop-fields.md,
# add-kubernetes-metadata.md, drop-event.md, elasticsearch-output.md, http-endpoint.md, configuration-logging.md
FILEBEAT = {
    "filebeat": {
        "inputs": [
            {
                **keys("type id paths clean_removed"),
                "prospector": {
                    "scanner": {**keys("exclude_files symlinks"), "fingerprint": keys("enabled")},
                },
                "file_identity": keys("native fingerprint path inode_marker"),
                "close": {"on_state_change": keys("inactive renamed removed")},
                "parsers": [{"include_message": keys("patterns"), "container": keys("stream format")}],
                "processors": [{"add_kubernetes_metadata": ANY, "drop_event": ANY}],
            }
        ]
    },
    "processors": [
        {
            "rename": {"fields": [keys("from to")], **keys("ignore_missing fail_on_error")},
            "drop_fields": keys("fields ignore_missing"),
        }
    ],
    "output": {"elasticsearch": keys("hosts username password index")},
    "setup": {"template": keys("enabled"), "ilm": keys("enabled"), "dashboards": keys("enabled")},
    "http": keys("enabled host port"),
    "logging": keys("level to_stderr to_files"),
}

# jaegertracing/jaeger v2.20.0: internal/storage/elasticsearch/config/{config,config_rotation}.go,
# cmd/internal/storageconfig/config.go, cmd/jaeger/internal/extension/jaegerquery/{config.go,internal/flags.go},
# internal/config/promcfg/config.go, cmd/jaeger/internal/exporters/storageexporter/config.go; healthcheckv2 and batch
# of the collector 0.155 that it is built with (go.mod).
_ROTATION = {
    "periodic": keys("date_layout rollover_frequency"),
    "auto_rollover": keys("read_alias write_alias policy_name"),
    **keys("manual_rollover data_stream"),
}
_INDEX = {**keys("priority shards replicas"), "rotation": _ROTATION}
_OTLP = {"protocols": {"grpc": keys("endpoint"), "http": keys("endpoint")}}
JAEGER = {
    "service": {"extensions": ANY, "pipelines": {"traces": keys("receivers processors exporters")}},
    "extensions": {
        "healthcheckv2": {"use_v2": ANY, "http": keys("endpoint")},
        "jaeger_query": {
            "storage": keys("traces traces_archive metrics"),
            "ui": keys("config_file assets_path log_access"),
        },
        "jaeger_storage": {
            "metric_backends": {
                "*": {
                    "prometheus": keys(
                        "endpoint connect_timeout tls token_file_path token_override_from_context metric_namespace "
                        "latency_unit normalize_calls normalize_duration extra_query_parameters auth"
                    )
                }
            },
            "backends": {
                "*": {
                    "elasticsearch": {
                        **keys("server_urls tls query_timeout max_span_age max_doc_count create_mappings log_level"),
                        "auth": {"basic": keys("username password password_file reload_interval")},
                        "indices": {
                            "index_prefix": ANY,
                            "spans": _INDEX,
                            "services": _INDEX,
                            "dependencies": _INDEX,
                            "sampling": _INDEX,
                        },
                    }
                }
            },
        },
    },
    "receivers": {"otlp": _OTLP},
    "processors": {"batch": {}},
    "exporters": {"jaeger_storage_exporter": keys("trace_storage queue retry_on_failure")},
}

# opentelemetry-collector and -contrib, the newest that could be read, which is not 0.159 everywhere: config.go of
# connector/spanmetricsconnector, processor/tailsamplingprocessor and exporter/prometheusexporter (2026), the list of
# keys of processor/redactionprocessor's README (2026-08), exporter/loadbalancingexporter's README 0.154; receiver,
# memory_limiter, sending_queue, retry, telemetry and healthcheck as a core 0.152 validates them.
_MEMORY = keys("check_interval limit_percentage spike_limit_percentage limit_mib spike_limit_mib")
_QUEUE = {
    **keys("enabled num_consumers queue_size sizer block_on_overflow wait_for_result storage"),
    "batch": keys("flush_timeout min_size max_size sizer partition"),
}
_OTLP_EXPORTER = {
    **keys("endpoint timeout compression"),
    "tls": keys("insecure insecure_skip_verify ca_file cert_file key_file"),
    "retry_on_failure": keys("enabled initial_interval max_interval max_elapsed_time"),
    "sending_queue": _QUEUE,
}
_POLICY = {
    **keys("name type"),
    "status_code": keys("status_codes"),
    "latency": keys("threshold_ms upper_threshold_ms"),
    "numeric_attribute": keys("key min_value max_value invert_match"),
    "probabilistic": keys("hash_salt sampling_percentage"),
}
COLLECTOR = {
    "extensions": {"health_check": keys("endpoint path")},
    "receivers": {"otlp": _OTLP},
    "processors": {
        "memory_limiter": _MEMORY,
        "redaction": keys(
            "allow_all_keys allowed_keys ignored_keys ignored_key_patterns blocked_key_patterns blocked_values "
            "allowed_values hash_function redact_all_types summary url_sanitizer db_sanitizer hmac_key"
        ),
        "tail_sampling": {
            **keys("decision_wait num_traces expected_new_traces_per_sec"),
            "decision_cache": keys("sampled_cache_size non_sampled_cache_size"),
            "policies": [_POLICY],
        },
    },
    "connectors": {
        "span_metrics": {
            "histogram": {
                **keys("disable unit dimensions"),
                "explicit": keys("buckets"),
                "exponential": keys("max_size"),
            },
            "dimensions": [keys("name default")],
            "exemplars": keys("enabled max_per_data_point"),
            **keys(
                "calls_dimensions exclude_dimensions resource_metrics_cache_size resource_metrics_key_attributes "
                "aggregation_temporality metrics_flush_interval metrics_expiration metric_timestamp_cache_size "
                "namespace events include_instrumentation_scope aggregation_cardinality_limit"
            ),
        }
    },
    "exporters": {
        "otlp_grpc/jaeger": _OTLP_EXPORTER,
        "prometheus": keys(
            "endpoint namespace const_labels send_timestamps metric_expiration resource_to_telemetry_conversion "
            "enable_open_metrics translation_strategy sending_queue"
        ),
        "load_balancing": {
            "routing_key": ANY,
            "protocol": {"otlp": _OTLP_EXPORTER},
            "resolver": {"static": keys("hostnames"), "dns": keys("hostname port interval timeout")},
        },
    },
    "service": {
        "extensions": ANY,
        "pipelines": {"*": keys("receivers processors exporters")},
        "telemetry": {
            "metrics": {"level": ANY, "readers": [{"pull": {"exporter": {"prometheus": keys("host port")}}}]},
            "logs": ANY,
        },
    },
}


def read(name: str) -> dict:
    return yaml.safe_load((SHIPPED / name).read_text())


def test_the_lists_are_those_of_the_pinned_versions():
    assert PINS["FILEBEAT_IMAGE"].endswith(":9.5.1")
    assert PINS["JAEGER_IMAGE"].endswith(":2.20.0")
    assert PINS["COLLECTOR_IMAGE"].endswith(":0.159.0")


@pytest.mark.parametrize("name", ["filebeat/filebeat.yml", "kubernetes/base/filebeat/filebeat.yml"])
def test_filebeat_knows_every_key(name):
    assert unknown(dotted(read(name)), FILEBEAT) == []


def test_jaeger_knows_every_key():
    assert unknown(read("jaeger/config.yaml"), JAEGER) == []


@pytest.mark.parametrize("name", ["config", "tail-sampling", "gateway"])
def test_the_collector_knows_every_key(name):
    assert unknown(read(f"collector/{name}.yaml"), COLLECTOR) == []


def test_a_misspelt_key_is_found():
    config = read("collector/config.yaml")
    config["processors"]["memory_limiter"]["limit_mibb"] = 1
    config["exporters"]["otlp_grpc/jaeger"]["sending_queue"]["batch"]["flush"] = "1s"
    assert unknown(config, COLLECTOR) == [
        "processors.memory_limiter.limit_mibb",
        "exporters.otlp_grpc/jaeger.sending_queue.batch.flush",
    ]


def merged(*names: str) -> dict:
    """Return what the collector makes of several files: objects are joined, lists replaced."""

    def join(one, other):
        if isinstance(one, dict) and isinstance(other, dict):
            return {key: join(one[key], other[key]) if key in one and key in other else one.get(key, other.get(key))
                    for key in one | other}  # fmt: skip
        return other

    result: dict = {}
    for name in names:
        result = join(result, read(f"collector/{name}.yaml"))
    return result


@pytest.mark.parametrize("names", [["config"], ["config", "tail-sampling"], ["gateway"]])
def test_pipelines_use_what_is_defined_and_all_of_it(names):
    config = merged(*names)
    pipelines = config["service"]["pipelines"].values()
    used = {part: {one for pipeline in pipelines for one in pipeline.get(part, [])}
            for part in ("receivers", "processors", "exporters")}  # fmt: skip
    connectors = set(config.get("connectors", {}))
    assert used["receivers"] - connectors == set(config["receivers"])
    assert used["exporters"] - connectors == set(config["exporters"])
    assert used["processors"] == set(config["processors"])
    assert connectors == used["receivers"] & used["exporters"]
    assert set(config["service"]["extensions"]) == set(config["extensions"])
    assert all(pipeline.get("processors", ["memory_limiter"])[0] == "memory_limiter" for pipeline in pipelines)


def test_sampling_waits_longer_than_a_slow_request_and_sees_the_redacted_span():
    config = merged("config", "tail-sampling")
    kept = config["service"]["pipelines"]["traces/keep"]["processors"]
    assert kept == ["memory_limiter", "redaction", "tail_sampling"]
    policies = config["processors"]["tail_sampling"]["policies"]
    allowed = config["processors"]["redaction"]["allowed_keys"]
    assert all(one["numeric_attribute"]["key"] in allowed for one in policies if "numeric_attribute" in one)


# ---- what the collector lets through ---------------------------------------------------------------------------------
CONTENT = {"gen_ai.input.messages", "gen_ai.output.messages"}


def every_attribute() -> set[str]:
    """Return the keys of every attribute of spans that have all that a span of ours can have, and of their resource."""
    one = sequence(
        preemptions=((log_lines.AT, log_lines.AT + 0.1),), kv_transfer=(log_lines.AT, log_lines.AT + 0.1),
        timing="durations", lora="adapter", engine_index=1, max_tokens=5, temperature=0.5, top_p=0.9, n=2,
        output_text="hello", error_type="EngineDeadError",
    )  # fmt: skip
    http = Http("POST", "/v1/chat/completions", 500, log_lines.AT, log_lines.AT + 1, first_byte=log_lines.AT + 0.1,
                streamed=True, client="10.0.0.7:4711", server_address="h", server_port=8000, user_agent="curl/8",
                error_type="X")  # fmt: skip
    whole = replace(
        request(*[one] * 130), http=http, trace=Trace(1, 2, 3, sampled=True, keep_reason="errors"), session_id="s",
        operation="chat", stream=True, user="0f", headers={"x-tenant": "beef"}, input_messages="[]",
        gpus=(Gpu("GPU-1", "H100", 1, 2.0),), error_type="500",
    )  # fmt: skip
    spans = [*spans_of(whole, legacy=True), *spans_of(replace(whole, http=None, sequences=(one,)), legacy=True)]
    found = {key for span in spans for key, _ in span.attributes}
    found |= {key for span in spans for event in span.events for key, _ in event.attributes}
    # What we add to vLLM's own span is of the same table: tracing/spans/llm_request.py.
    return found | set(resource({}, {"vllm.version": "0.32.0"}))


def test_the_collector_lets_every_attribute_of_ours_through_but_no_content():
    redaction = read("collector/config.yaml")["processors"]["redaction"]
    allowed = set(redaction["allowed_keys"])
    patterns = [re.compile(pattern) for pattern in redaction["ignored_key_patterns"]]
    written = every_attribute()
    assert len(written) > 60
    assert written >= CONTENT, "they have to be among what is tried"
    passing = {key for key in written if key in allowed or any(pattern.search(key) for pattern in patterns)}
    assert written - passing == CONTENT
    assert redaction["allow_all_keys"] is False
    assert redaction["allowed_keys"] == sorted(allowed)


def test_dimensions_of_span_metrics_are_attributes_that_get_through():
    config = read("collector/config.yaml")
    names = {one["name"] for one in config["connectors"]["span_metrics"]["dimensions"]}
    assert names <= set(config["processors"]["redaction"]["allowed_keys"]) & every_attribute()


# ---- Jaeger's indices ------------------------------------------------------------------------------------------------
def types(properties, prefix="") -> dict[str, str]:
    found = {}
    for name, one in properties.items():
        if "type" in one:
            found[f"{prefix}{name}"] = one["type"]
        found |= types(one.get("properties", {}), f"{prefix}{name}.")
    return found


# jaegertracing/jaeger v2.20.0 internal/storage/elasticsearch/esclient/index_templates/jaeger-span.json
_PAIRS = ("logs.fields", "process.tags", "references.tags", "tags", "scopeTags")
SPAN_TYPES = {
    **dict.fromkeys(("traceID", "spanID", "parentSpanID", "operationName", "process.serviceName"), "keyword"),
    **dict.fromkeys(("startTime", "duration", "logs.timestamp"), "long"),
    **dict.fromkeys(("flags", "references.flags"), "integer"),
    **{f"references.{name}": "keyword" for name in ("refType", "traceID", "spanID", "traceState")},
    **dict.fromkeys(("tag", "process.tag", "scopeTag"), "object"),
    **dict.fromkeys(("logs", "references", *_PAIRS), "nested"),
    **{f"{pair}.{name}": "keyword" for pair in _PAIRS for name in ("key", "value", "type")},
    "startTimeMillis": "date",
}  # fmt: skip


def template(name: str) -> dict:
    return json.loads((SHIPPED / f"elasticsearch/{name}.json").read_text())


def test_jaegers_spans_have_the_types_that_it_searches_by():
    mappings = template("jaeger-span")["template"]["mappings"]
    assert types(mappings["properties"]) == SPAN_TYPES
    assert mappings["properties"]["startTimeMillis"]["format"] == "epoch_millis"
    paths = [rule["path_match"] for one in mappings["dynamic_templates"] for rule in one.values()]
    assert paths == ["tag.*", "process.tag.*", "scopeTag.*"]
    assert types(template("jaeger-service")["template"]["mappings"]["properties"]) == {
        "serviceName": "keyword",
        "operationName": "keyword",
    }


BACKEND = read("jaeger/config.yaml")["extensions"]["jaeger_storage"]["backends"]["spans"]["elasticsearch"]


@pytest.mark.parametrize(("name", "index"), [("span", "spans"), ("service", "services"),
                                             ("dependencies", "dependencies"), ("sampling", "sampling")])  # fmt: skip
def test_each_of_jaegers_indices_finds_its_template(name, index):
    assert BACKEND["create_mappings"] is False
    options, made = BACKEND["indices"][index], template(f"jaeger-{name}")
    assert made["index_patterns"] == [f"jaeger-{name}-*"]
    settings = made["template"]["settings"]
    assert settings["index.number_of_shards"] == options["shards"]
    assert settings["index.number_of_replicas"] == options["replicas"] == 0


@pytest.mark.parametrize(("name", "index"), [("span", "spans"), ("service", "services")])
def test_spans_and_services_roll_over_by_the_aliases_that_jaeger_uses(name, index):
    rotation = BACKEND["indices"][index]["rotation"]["auto_rollover"]
    made = template(f"jaeger-{name}")
    settings = made["template"]["settings"]
    assert settings["index.lifecycle.name"] == rotation["policy_name"] == "vllm-vitals-spans"
    assert settings["index.lifecycle.rollover_alias"] == rotation["write_alias"] == f"jaeger-{name}-write"
    assert [*made["template"]["aliases"]] == [rotation["read_alias"]] == [f"jaeger-{name}-read"]
    assert made["allow_auto_create"] is False, "a missing alias would become an index of its name"


@pytest.mark.parametrize("name", ["dependencies", "sampling"])
def test_the_rest_of_jaegers_is_by_day_and_ends_with_its_age(name):
    assert BACKEND["indices"][name]["rotation"]["periodic"] == {
        "date_layout": "2006-01-02",
        "rollover_frequency": "day",
    }
    settings = template(f"jaeger-{name}")["template"]["settings"]
    assert settings["index.lifecycle.name"] == "vllm-vitals-traces"
    assert "index.lifecycle.rollover_alias" not in settings
