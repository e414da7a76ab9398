"""`vllm-vitals up` beside another one, and when what it started dies."""

import subprocess
from pathlib import Path

import psutil
import pytest
from support.http import free_port, get
from support.programs import VITALS, Program
from support.up import companions, started, url_of
from support.waiting import wait_for

pytestmark = pytest.mark.waits


def test_a_second_up_on_the_same_folder_is_refused_and_the_first_one_lives_on(run_up, tmp_path):
    first = run_up("--demo")
    started(first)
    before = companions(first)
    second = subprocess.run(
        [VITALS, "up", "--demo", "--state", tmp_path / "state", "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 2
    [line] = second.stderr.splitlines()
    assert f"in use by another `up` (pid {first.process.pid})" in line
    assert companions(first) == before
    assert all(child.is_running() for child in before.values())


def test_the_demo_beside_a_real_up_takes_other_ports(run_up):
    real = run_up("--gpus", "off")
    started(real)
    before = companions(real)
    demo = run_up("--demo")
    started(demo)
    urls = {url_of(up, name) for up in (real, demo) for name in ("prometheus", "alertmanager")}
    assert len(urls) == 4
    assert demo.interrupt() == 0
    assert companions(real) == before
    assert {get(f"{url_of(real, name)}/-/ready").status for name in before} == {200}


@pytest.mark.parametrize("name", ["prometheus", "alertmanager"])
def test_a_companion_that_is_killed_is_said_and_runs_again_on_its_port(run_up, name):
    up = run_up("--demo")
    started(up)
    companions(up)[name].kill()
    wait_for(lambda: f"{name:<13} was killed by SIGKILL" in up.output, "the news")
    wait_for(lambda: f"{name:<13} runs again: {url_of(up, name)}/" in up.output, "the new start", seconds=60)
    assert get(f"{url_of(up, name)}/-/ready").status == 200
    children = list(companions(up).values())
    assert len(children) == 2
    assert up.interrupt() == 0
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_a_companion_that_cannot_start_again_is_given_up_with_its_last_words(run_up, tmp_path):
    up = run_up("--demo")
    started(up)
    (tmp_path / "state/vllm-vitals-demo/prometheus.yml").write_text("nonsense: [\n")
    companions(up)["prometheus"].kill()
    wait_for(lambda: "Given up after 5 new starts" in up.output, "the end of patience", seconds=120)
    last = up.output.splitlines()[-1]
    assert last.startswith("prometheus    did not start: ended with exit code ")
    assert "yaml" in last, "its own words"
    assert up.get("/metrics").status == 200
    assert get(f"{url_of(up, 'alertmanager')}/-/ready").status == 200
    assert up.interrupt() == 0


def test_a_prometheus_that_a_person_started_on_our_data_is_not_ended_and_ours_stays_off_it(run_up, tmp_path):
    first = run_up("--demo")
    started(first)
    assert first.interrupt() == 0
    folder = tmp_path / "state/vllm-vitals-demo"
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    theirs = Program(command, tmp_path / "theirs.log")
    try:
        theirs.ready(f"http://127.0.0.1:{port}/-/ready")
        up = run_up("--demo")
        started(up)
        assert theirs.process.poll() is None
        assert f"prometheus    not started: process {theirs.process.pid}, which `up` did not start" in up.output
        assert up.interrupt() == 0
        assert theirs.process.poll() is None
    finally:
        theirs.stop()


def test_a_prometheus_that_cannot_scrape_is_asked_why(tmp_path):
    import asyncio

    from vllm_vitals.alerts.sla_file import DEFAULT, load
    from vllm_vitals.cli.companions import Companions
    from vllm_vitals.cli.state_folder import DEMO, held
    from vllm_vitals.exporter.scrape_listener import ScrapeListener
    from vllm_vitals.settings.scalars import Secret

    async def problem(folder: Path) -> str:
        with held(folder, DEMO) as ours:
            nobody = ScrapeListener(f"127.0.0.1:{free_port()}", Secret("token"))
            async with Companions(ours, "http://127.0.0.1:1", nobody, load(DEFAULT)) as running:
                async with asyncio.timeout(30):
                    while "not tried yet" in (answer := await running.scrape_problem()):
                        await asyncio.sleep(0.1)
                return answer

    assert "connection refused" in asyncio.run(problem(tmp_path / "state"))
