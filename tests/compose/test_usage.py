"""What `bundle status` says of usage; the lines are those that a real Docker Engine printed."""

import pytest
from vllm_vitals.compose.docker import Compose, Service
from vllm_vitals.compose.usage import Usage, lines, read_stats

PROMETHEUS = (
    '{"BlockIO":"0B / 0B","CPUPerc":"1.89%","Container":"03d4cbec2b6a","ID":"03d4cbec2b6a","MemPerc":"1.90%",'
    '"MemUsage":"38.83MiB / 2GiB","Name":"vllm-vitals-prometheus-1","NetIO":"0B / 0B","PIDs":"8"}\n'
)


def stats(name: str, cpu: str, memory: str) -> str:
    return PROMETHEUS.replace("prometheus", name).replace("1.89%", cpu).replace("38.83MiB", memory)


def running(*names: str) -> list[Service]:
    return [Service(name, "running", "healthy", 0, f"vllm-vitals-{name}-1") for name in names]


@pytest.mark.parametrize(
    ("cpu", "memory", "usage"),
    [("1.89%", "38.83MiB", Usage(0.0189, 38.83)), ("0.00%", "512KiB", Usage(0.0, 0.5)),
     ("150.00%", "1.5GiB", Usage(1.5, 1536.0)), ("0.00%", "0B", Usage(0.0, 0.0))],
)  # fmt: skip
def test_dockers_units_become_cores_and_mebibytes(cpu, memory, usage):
    assert read_stats(stats("prometheus", cpu, memory)) == {"vllm-vitals-prometheus-1": usage}


@pytest.mark.parametrize("line", ["", "Error response from daemon", "[1]", '{"Name":"a"}', stats("a", "--", "--")])
def test_what_docker_does_not_know_is_left_out(line):
    assert [*read_stats(f"{line}\n{PROMETHEUS}")] == ["vllm-vitals-prometheus-1"]


def test_each_service_has_its_usage_and_below_them_is_the_sum():
    services = [
        *running("elasticsearch-retention", "prometheus"),
        Service("secrets", "exited", "", 0, "vllm-vitals-secrets-1"),
        Service("grafana", "restarting", "", 1, "vllm-vitals-grafana-1"),
    ]
    used = read_stats(stats("prometheus", "12.00%", "100MiB") + stats("elasticsearch-retention", "0.00%", "856KiB"))
    assert lines(services, used) == [
        "[ok]  elasticsearch-retention healthy      0.00 cores       1 MiB",
        "[ok]  prometheus              healthy      0.12 cores     100 MiB",
        "[ok]  secrets                 done",
        "[!!]  grafana                 restarting",
        "      all                                  0.12 cores     101 MiB",
    ]


def test_what_is_not_known_is_left_empty_and_not_counted_as_nothing():
    found = lines(running("prometheus", "grafana"), read_stats(PROMETHEUS))
    assert found[1] == "[ok]  grafana    healthy"
    assert found[2].split() == ["all", "but", "1", "0.02", "cores", "39", "MiB"]


def test_without_figures_the_states_are_all_there_is():
    assert lines(running("prometheus"), {}) == ["[ok]  prometheus healthy"]


def test_the_profile_metrics_stands_beside_its_budget():
    names = ["prometheus", "alertmanager", "grafana", "exporter", "node_exporter"]
    used = read_stats("".join(stats(name, "2.00%", "50MiB") for name in [*names, "jaeger"]))
    *_, everything, metrics = lines(running(*names, "jaeger"), used)
    assert "0.12 cores     300 MiB" in everything
    assert "0.10 cores     250 MiB   (idle, with two engines: budget 0.1 cores and 700 MiB)" in metrics
    assert "budget" not in "".join(lines(running(*names[1:], "jaeger"), used))


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 100"])
def test_a_docker_that_fails_or_is_slow_gives_no_figures(tmp_path, script):
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\necho '{PROMETHEUS.strip()}'\n{script}\n")
    docker.chmod(0o755)
    assert Compose(str(docker), tmp_path).stats(["vllm-vitals-prometheus-1"], deadline=0.5) == ""
    docker.write_text(f"#!/bin/sh\necho '{PROMETHEUS.strip()}'\n")
    assert Compose(str(docker), tmp_path).stats(["vllm-vitals-prometheus-1"], deadline=5.0) == PROMETHEUS
