"""An hour of the steady scene under the default SLA, by the generated rules and the real promtool: nobody is called.

The fleet is played without its clock: a page every 30 s becomes promtool's input series.
"""

import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from vllm_vitals.alerts.build import rule_groups
from vllm_vitals.alerts.rules import as_yaml
from vllm_vitals.alerts.sla_file import load
from vllm_vitals.demo.fleet import Fleet
from vllm_vitals.exporter.engines.readings import samples
from vllm_vitals.exporter.pages.relabel import Relabeler

STEP = 30
TARGET = 'instance="demo:9836",job="vllm-vitals"'
RULES = as_yaml(group for groups in rule_groups(load()).values() for group in groups)


def series(scene: str, seed: int, seconds: int) -> list[dict[str, str]]:
    """What a Prometheus would have scraped of everything that the rules read."""
    fleet = Fleet.build(scene, seed=seed)
    relabelers = {server.name: Relabeler(server.name) for server in fleet.servers}
    found: dict[str, list[str]] = defaultdict(list)

    def put(name: str, labels: str, value: float) -> None:
        found[f"{name}{{{labels}{',' if labels else ''}{TARGET}}}"].append(repr(float(value)))

    for moment in range(0, seconds + 1, STEP):
        fleet.advance(moment)
        for server in fleet.servers:
            page = relabelers[server.name].relabel(fleet.page(server))
            for family in page.families:
                if family.decode() not in RULES:
                    continue
                for name, labels, value in samples(page, family.decode()):
                    if "le" in labels and f'le="{labels["le"]}"' not in RULES:
                        continue
                    pairs = ",".join(f'{key}="{text}"' for key, text in sorted(labels.items()))
                    put(name.decode(), pairs, value)
            for name, value in (("up", 1), ("healthy", 1), ("stalled", 0), ("restarts_total", 0)):
                put(f"vllm_vitals_server_{name}", f'server="{server.name}"', value)
        for gpu in fleet.gpus.open():
            labels = f'gpu="{gpu.index}",uuid="{gpu.uuid}"'
            for family, more, value in gpu.read(slow=True):
                if family in RULES:
                    put(family, f"{labels},{more}" if more else labels, value)
            put("nvidia_gpu_up", labels, 1)
            put("nvidia_gpu_snapshot_age_seconds", labels, 0.5)
        for name, value in (("up", 1), ("vllm_vitals_nvml_up", 1), ("vllm_vitals_gpus", 8)):
            put(name, "", value)
    missing = seconds // STEP + 1
    return [{"series": name, "values": " ".join(["_"] * (missing - len(v)) + v)} for name, v in found.items()]


def promtool(folder: Path, played: list[dict[str, str]], expected: dict[str, float | None], seconds: int) -> str:
    """Evaluate the rules over series; return what was not as expected (expression -> its value, None for nothing)."""
    program = shutil.which("promtool")
    assert program, "promtool is missing; ./vitals test installs it"
    (folder / "rules.yml").write_text(RULES)
    checks = [
        {
            "expr": expression,
            "eval_time": f"{seconds}s",
            "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
        }
        for expression, value in expected.items()
    ]
    test = {"interval": f"{STEP}s", "input_series": played, "promql_expr_test": checks}
    content = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "30s",
        "group_eval_order": [group["name"] for group in yaml.safe_load(RULES)["groups"]],
        "tests": [test],
    }
    (folder / "test.yml").write_text(yaml.safe_dump(content, width=10**9))
    done = subprocess.run(
        [program, "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True, timeout=300
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_is_pending_and_nothing_fires_within_an_hour_of_the_steady_scene(tmp_path, seed):
    expected = {
        "count by (alertname, alertstate, burn_tier, model_name) (count_over_time(ALERTS[1h]))": None,
        'count(slo:sli_total:increase1h{slo="ttft"} > 5000)': 2,  # and it is judged by thousands of requests
        'count(slo:sli_error:ratio1h{slo=~"ttft|tpot|itl|e2e|queue|availability|engine-errors|goodput-at-best"})': 16,
    }
    assert promtool(tmp_path, series("steady", seed, 3600), expected, 3600) == ""


def test_the_same_rules_call_somebody_within_ten_minutes_of_slow_prefill(tmp_path):
    expected = {
        'count(ALERTS{alertname="VLLMTTFTBudgetBurn",alertstate="firing",severity="page"}) > bool 1': 1,
    }
    assert promtool(tmp_path, series("slow-prefill", 0, 600), expected, 600) == ""
