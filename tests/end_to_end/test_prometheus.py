"""Real Prometheus, 2.42 and 3.x, scrapes eight GPUs (fake driver, real binding) and a real vLLM through us."""

import re
import subprocess
from pathlib import Path

import pytest
from support.exposition import families, series
from support.http import free_port, get
from support.waiting import wait_for

CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: vitals
    static_configs: [{{targets: ["{exporter}"]}}]
  - job_name: itself
    static_configs: [{{targets: ["{own}"]}}]
"""
BAD_SCRAPES = (
    "prometheus_target_scrapes_sample_duplicate_timestamp_total",
    "prometheus_target_scrapes_sample_out_of_order_total",
    "prometheus_target_scrapes_sample_out_of_bounds_total",
    "prometheus_target_scrapes_exceeded_body_size_limit_total",
)


@pytest.fixture
def scraped(vllm, run_exporter, run_program, fake_nvml, prometheus_binaries, tmp_path):
    """Return (exporter's page, query function) after at least two scrapes."""
    exporter = run_exporter("--engine", vllm.url, env=fake_nvml.env, gpus="on", host="on")

    def complete():
        page = exporter.page()
        return page.count("nvidia_gpu_energy_joules_total{") == 8 and 'source="' in page and "_host_cpus" in page

    wait_for(complete, "eight GPUs, host and placement on the page")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "prometheus.yml").write_text(CONFIG.format(exporter=exporter.url[7:], own=url[7:]))
    prometheus = run_program(
        prometheus_binaries / "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    prometheus.ready(f"{url}/-/ready")

    def query(expression: str) -> list[dict]:
        from urllib.parse import quote

        answer = get(f"{url}/api/v1/query?query={quote(expression)}").json
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    wait_for(lambda: query('count_over_time(up{job="vitals"}[1m]) >= 3'), "three scrapes", seconds=30)
    return exporter.page(), query


def test_every_series_of_the_page_is_in_prometheus_and_no_scrape_had_a_bad_sample(scraped):
    page, query = scraped
    assert [row["value"][1] for row in query('min_over_time(up{job="vitals"}[1m])')] == ["1"]
    stored = {
        frozenset((k, v) for k, v in row["metric"].items() if k not in {"job", "instance"})
        for row in query('{job="vitals"}')
    }
    # an empty label is no label for Prometheus; le="1.0" is le="1" for Prometheus 3
    number = re.compile(r"^-?\d+\.0$")
    normal = lambda k, v: (k, v.removesuffix(".0") if k == "le" and number.match(v) else v)
    wanted = {frozenset(normal(k, v) for k, v in (("__name__", name), *labels) if v) for name, labels in series(page)}
    missing = wanted - {frozenset(normal(k, v) for k, v in row) for row in stored}
    assert not missing, sorted(map(sorted, missing))[:3]
    for counter in BAD_SCRAPES:
        assert [row["value"][1] for row in query(f'{counter}{{job="itself"}}')] == ["0"], counter


def test_the_join_of_the_readme_gives_joules_per_token(scraped, vllm):
    _, query = scraped
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    expression = re.search(r"```promql\n(.*?)```", readme, re.DOTALL)[1].replace("[5m]", "[20s]")

    def joined():
        vllm.traffic(2, max_tokens=16)
        rows = query(expression)
        return rows if rows and float(rows[0]["value"][1]) not in {0.0, float("inf")} else None

    # no fake GPU says that the real engine is on it, so the sole engine owns all eight
    (row,) = wait_for(joined, "joules per token", seconds=60)
    assert 0 < float(row["value"][1]) < 8 * 700 * 60


def test_promtool_has_nothing_to_say_about_our_own_series(scraped, prometheus_binaries):
    page, _ = scraped
    checked = subprocess.run(
        [prometheus_binaries / "promtool", "check", "metrics"], input=page.encode(), capture_output=True
    )
    said = checked.stderr.decode() + checked.stdout.decode()
    assert "error while linting" not in said, said
    ours = [line for line in said.splitlines() if line.startswith(("nvidia_gpu_", "vllm_vitals_"))]
    assert not ours, ours
    assert len([name for name in families(page) if name.startswith("nvidia_gpu_")]) > 35
