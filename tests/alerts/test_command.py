"""`vllm-vitals rules` as a user types it."""

import pytest
from vllm_vitals.alerts.sla_file import DEFAULT

WRONG = "services: [{name: a, selector: {job: x}, objectives: {ttft: 99%}}]\n"


@pytest.mark.parametrize("name", ["build", "check", "test", "simulate", "explain"])
def test_each_command_explains_itself_with_an_example(command, name):
    code, out, _ = command("rules", name, "--help")
    assert code == 0
    assert f"\n  vllm-vitals rules {name}" in out


def test_a_default_file_printed_and_built_gives_what_the_default_gives(command, tmp_path):
    _, out, _ = command("rules", "build", "--print-default")
    assert out == DEFAULT.read_text()
    (tmp_path / "sla.yaml").write_text(out)
    code, out, err = command("rules", "build", "sla.yaml", "--runbooks", "pages")
    assert (code, err) == (0, "")
    assert "rules/vllm.rules.yml" in out
    code, out, _ = command("rules", "check", "--out", "rules", "--runbooks", "pages")
    assert (code, out.startswith("sound: ")) == (0, True)


def test_check_names_files_that_differ(command, tmp_path):
    command("rules", "build")
    (tmp_path / "rules/gpus.rules.yml").write_text("groups: []\n")
    code, out, _ = command("rules", "check", "--out", "rules")
    assert code == 1
    assert "rules/gpus.rules.yml: differs from what this SLA makes" in out


def test_check_says_what_is_wrong_with_an_expression(command, tmp_path):
    (tmp_path / "sla.yaml").write_text(
        "services: [{name: a, selector: {job: x}, by: [tenant], objectives: {ttft: 99% under 1s}}]\n"
    )
    assert command("rules", "check", "sla.yaml")[0] == 0  # a label that a scrape may add
    (tmp_path / "sla.yaml").write_text(
        "services: [{name: a, selector: {job: x}, by: [engine], objectives: {availability: 99.9%}}]\n"
    )
    code, out, _ = command("rules", "check", "sla.yaml")
    assert code == 1
    assert "sum by (engine): no such label" in out


def test_a_wrong_file_ends_with_2_and_its_line(command, tmp_path):
    (tmp_path / "sla.yaml").write_text(WRONG)
    for name in (["build"], ["check"], ["test"], ["simulate", "--traffic", "1 rps"]):
        code, out, err = command("rules", *name, "sla.yaml")
        assert (code, out) == (2, "")
        assert "sla.yaml:1: services[0].objectives.ttft: expected a promise such as" in err
    assert not (tmp_path / "rules").exists()


def test_a_file_that_is_not_there_is_named(command):
    code, _, err = command("rules", "build", "nowhere.yaml")
    assert code == 2
    assert "nowhere.yaml" in err


def test_a_promise_between_buckets_is_noted_with_the_flag_that_makes_it_exact(command, tmp_path):
    (tmp_path / "sla.yaml").write_text(
        "services: [{name: a, selector: {job: x}, objectives: {tpot: 95% under 60ms}}]\n"
    )
    code, _, err = command("rules", "build", "sla.yaml")
    assert code == 0
    assert "lies between the buckets 0.05 s and 0.075 s and is interpolated" in err
    assert "it reads 13.1%" in err
    assert '--custom-histogram-buckets \'{"inter_token_latency": [0.01,' in err


def test_rules_that_cannot_be_written_are_an_error(command, tmp_path):
    (tmp_path / "rules").write_text("a file")
    code, _, err = command("rules", "build")
    assert code == 2
    assert "--out: expected a writable folder" in err


def test_test_runs_promtool_and_says_how_it_went(command, tmp_path):
    (tmp_path / "sla.yaml").write_text(  # no alert of a promise: its tests take longest, and run elsewhere
        "services: [{name: a, selector: {job: x}, objectives: {availability: {promise: 99.9%, severity: 'off'}}}]\n"
    )
    code, out, _ = command("rules", "test", "sla.yaml", "--keep", "tests")
    assert code == 0
    assert "ok     a-availability.test.yml" in out
    assert (tmp_path / "tests/a-availability.rules.yml").is_file()


def test_test_without_promtool_says_where_to_get_it(command, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    code, _, err = command("rules", "test")
    assert code == 2
    assert "promtool: expected it on PATH, found none; it comes with Prometheus" in err


def test_simulate_prints_a_table_and_draws(command, tmp_path):
    code, out, _ = command(
        "rules", "simulate", "--traffic", "0.1 rps", "--objective", "availability", "--seeds", 1, "--plot", "x.png"
    )
    assert code == 0
    assert "vllm availability, vllm engine_errors: 99.9%" in out
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_simulate_names_the_objectives_that_there_are(command):
    code, _, err = command("rules", "simulate", "--traffic", "1 rps", "--objective", "tttft")
    assert code == 2
    assert "--objective: expected one of ttft, tpot" in err


def test_explain_lists_explains_and_corrects(command, tmp_path):
    code, out, _ = command("rules", "explain")
    assert code == 0
    assert "VLLMTTFTBudgetBurn" in out
    code, out, _ = command("rules", "explain", "VLLMTTFTBudgetBurn")
    assert code == 0
    assert "vllm promises ttft 99% under 500ms over 30d" in out
    code, _, err = command("rules", "explain", "VLLMTTFTBudgetBurned")
    assert code == 2
    assert "did you mean VLLMTTFTBudgetBurn?" in err
    (tmp_path / "sla.yaml").write_text(WRONG)
    code, _, err = command("rules", "explain", "sla.yaml")
    assert code == 2
