"""The live page in a real Chromium: over the demo, over scripted engines, over a fake driver."""

import contextlib
import json
import re
import socket

import pytest
from support.browser import Visit, chromium
from support.faulty_server import FaultyServer, page, status
from support.http import free_port, get
from support.programs import VITALS, Exporter
from support.waiting import wait_for

GENERATION = "generation_tokens_per_second"
HOSTILE = "<img src=x onerror=window.hacked=1>"
DASH = "\N{EN DASH}"
QUICK = ("--sample-interval", "500ms")

# Every figure of a row or tile, and what is said about it: {".engine": [[name, state, ...figures], ...], ...}
SHOWN = """() => {
  const words = (node, ...names) => names.map((name) => node.querySelector(name)?.textContent ?? "");
  const rows = (name, ...parts) => [...document.querySelectorAll(name)].map((node) => ({
    words: words(node, ...parts),
    figures: [...node.querySelectorAll(".figure")].map((figure) => words(figure, "b", "small").join("")),
  }));
  return {
    headline: document.getElementById("headline").textContent,
    engines: rows(".engine", "h3", ".state", ".model", ".seats"),
    gpus: rows(".gpu", "h3", ".state", ".tags"),
  };
}"""

# Text whose contrast with what lies behind it is below WCAG AA for its size.
FAINT = """() => {
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = numbers(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
  };
  const faint = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    const style = getComputedStyle(node);
    if (!walk.currentNode.data.trim() || !node.checkVisibility() || parseFloat(style.fontSize) === 0) continue;
    const [a, b] = [light(numbers(style.color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(style.fontSize) >= 24;
    if (ratio < (large ? 3 : 4.5)) faint.push(`${walk.currentNode.data}: ${ratio.toFixed(2)}`);
  }
  return faint;
}"""


def demo_ports(count):
    """Return the first of `count` free ports in a row."""
    while True:
        first = free_port()
        with contextlib.suppress(OSError, OverflowError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo: two engines on six of eight GPUs."""
    ports = ("--base-port", demo_ports(2))
    log = tmp_path_factory.mktemp("demo") / "log"
    program = Exporter(*ports, "--scene", "burst", *QUICK, command="demo", log=log)
    program.ready(f"{program.url}/readyz")
    yield program
    program.stop()


@pytest.fixture
def visit(browser):
    """Open a page in a context of its own; in every test it complains about nothing and asks nobody else."""
    opened = []

    def go(url, *, complaints=False, **context):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context})
        seen = Visit(context)
        opened.append((context, seen, url, complaints))
        seen.page.goto(url)
        return seen

    yield go
    for context, seen, url, complaints in opened:
        context.close()
        assert complaints or not seen.complaints
        assert all(asked.startswith((url, "data:")) for asked in seen.urls), seen.urls


def wait_text(seen, selector, words):
    seen.page.wait_for_function(
        "([selector, words]) => document.querySelector(selector)?.textContent.includes(words)", arg=[selector, words]
    )


def number(value, small):
    return f"{value:,.{1 if value and value < small else 0}f}"


def three_digits(value):
    return f"{value:,.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def figure(value, symbol, factor=1.0):
    return DASH if value is None else f"{number(value * factor, 9.95)}\u00a0{symbol}"


def seconds(value):
    if value is None or value < 0.9995:
        return figure(value, "ms", 1000)
    return f"{three_digits(value)}\u00a0s"


def engine_figures(row):
    joules = row["joules_per_output_token"]
    return [
        f"{row['running']:,.0f}",
        f"{row['waiting']:,.0f}",
        figure(row["finished_per_second"], "/s"),
        *(seconds(row[kind][q]) for kind in ("ttft_seconds", "tpot_seconds") for q in ("p50", "p95", "p99")),
        figure(row["prompt_tokens_per_second"], "tok/s"),
        figure(row[GENERATION], "tok/s"),
        DASH if joules is None else f"{three_digits(joules)}\u00a0J/token",
        figure(row["kv_cache_ratio"], "%", 100),
        figure(row["prefix_hit_ratio"], "%", 100),
        figure(row["preemptions_per_second"], "/min", 60),
    ]


def gpu_figures(row):
    gibibyte = 1 << 30
    return [
        f"{row['utilization_ratio'] * 100:.0f}\u00a0%",
        f"{row['power_watts']:,.0f}\u00a0W",
        f"{row['temperature_celsius']:.0f}\u00a0°C",
        f"{row['memory_used_bytes'] / gibibyte:.1f}\u00a0of {row['memory_total_bytes'] / gibibyte:.1f} GiB",
    ]


def test_every_engine_and_gpu_is_shown_with_the_values_of_the_api(demo, visit):
    seen = visit(demo.url)
    seen.page.wait_for_selector(".gpu")

    def same():
        with seen.page.expect_response("**/api/vitals") as answer:
            pass
        api = answer.value.json()
        shown = seen.page.evaluate(SHOWN)
        assert api["engines"][0]["joules_per_output_token"] is not None
        assert [row["figures"] for row in shown["engines"]] == [engine_figures(row) for row in api["engines"]]
        assert [row["figures"] for row in shown["gpus"]] == [gpu_figures(row) for row in api["gpus"]]
        assert shown["headline"] == api["verdict"]["words"]
        return shown

    shown = wait_for(same, "a page that shows what it was told", 30, pause=0)
    assert [row["words"] for row in shown["engines"]] == [
        ["llama-3.1-70b", "up", "meta-llama/Llama-3.1-70B-Instruct", f"on GPU 0{DASH}3"],
        ["qwen3-8b", "up", "Qwen/Qwen3-8B", f"on GPU 4{DASH}5"],
    ]
    tags = ["Allama-3.1-70b"] * 4 + ["Bqwen3-8b"] * 2 + ["no engine"] * 2
    assert [row["words"] for row in shown["gpus"]] == [[f"GPU {i}", "ok", tag] for i, tag in enumerate(tags)]
    assert seen.page.inner_text("#kinds") == "8 \N{MULTIPLICATION SIGN} NVIDIA H100 80GB HBM3 (simulated)"
    assert seen.page.inner_text("#scene") == "simulated: scene burst"


def test_the_page_updates_itself_and_leaves_focus_and_selection_alone(demo, visit):
    seen = visit(demo.url)
    seen.page.wait_for_selector(".spark path[d]")
    seen.page.evaluate("""() => {
      const row = document.querySelector(".engine");
      window.kept = { row, figures: row.querySelector("dl").textContent, line: row.querySelector("svg").innerHTML };
      row.querySelector(".tag").focus();
      getSelection().selectAllChildren(row.querySelector(".model"));
    }""")
    seen.page.wait_for_function("""() => {
      const row = document.querySelector(".engine");
      return row.querySelector("dl").textContent !== kept.figures && row.querySelector("svg").innerHTML !== kept.line;
    }""")
    assert seen.page.evaluate("document.querySelector('.engine') === kept.row")
    assert seen.page.evaluate("document.activeElement.dataset.pin") == "llama-3.1-70b"
    assert seen.page.evaluate("getSelection().toString()") == "meta-llama/Llama-3.1-70B-Instruct"


def test_an_engine_shows_its_gpus_and_a_gpu_its_engine(demo, visit):
    seen = visit(demo.url)
    seen.page.wait_for_selector(".gpu")

    def lit():
        return seen.page.eval_on_selector_all(".lit h3", "nodes => nodes.map((node) => node.textContent)")

    seen.page.hover(".engine:nth-child(2)")
    assert lit() == ["qwen3-8b", "GPU 4", "GPU 5"]
    seen.page.hover(".gpu:nth-child(1)")
    assert lit() == ["llama-3.1-70b", *(f"GPU {i}" for i in range(4))]
    seen.page.hover("#headline")
    assert lit() == []

    seen.page.focus("#theme")
    seen.page.keyboard.press("Tab")
    seen.page.keyboard.press("Enter")
    seen.page.hover("#headline")
    assert lit() == ["llama-3.1-70b", *(f"GPU {i}" for i in range(4))]
    assert seen.page.locator("[aria-pressed=true]").count() == 5  # its letter in its row and on four tiles
    seen.page.keyboard.press("Escape")
    assert lit() == []


def test_it_can_be_read_by_a_screen_reader(demo, visit):
    seen = visit(demo.url)
    wait_text(seen, ".promises:nth-child(2) h3", "Qwen")
    assert seen.page.eval_on_selector_all("[aria-live]", "nodes => nodes.map((node) => node.id)") == ["headline"]
    assert seen.page.locator("html[lang=en]").count() == 1
    assert [node.inner_text() for node in seen.page.locator("h2:visible").all()] == ["Promises", "Engines", "GPUs"]
    assert seen.page.get_by_role("heading", level=1).inner_text() == seen.page.inner_text("#headline")
    assert seen.page.get_by_role("listitem").filter(has=seen.page.get_by_role("heading", level=3)).count() == 12
    assert seen.page.get_by_role("button", name="Engine B, qwen3-8b: highlight with its GPUs").count() == 3
    assert seen.page.get_by_role("img", name=re.compile(rf"^last 10 minutes: p95 .*{DASH}")).count() == 4
    for link in seen.page.get_by_role("link").all():
        assert get(f"{demo.url}/{link.get_attribute('href')}").status in {200, 503}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_systems_colours_and_every_text_stands_out(demo, visit, scheme):
    seen = visit(demo.url, color_scheme=scheme)
    seen.page.wait_for_selector(".gpu")
    level = sum(map(int, re.findall(r"\d+", seen.page.evaluate("getComputedStyle(document.body).backgroundColor"))))
    assert (level > 600) == (scheme == "light")
    assert seen.page.evaluate(FAINT) == []


def test_the_choice_of_colours_is_kept(demo, visit):
    seen = visit(demo.url, color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = seen.page.evaluate(background)
    assert seen.page.inner_text("#theme") == "Theme: auto"
    seen.page.click("#theme")
    assert (seen.page.inner_text("#theme"), seen.page.evaluate(background)) == ("Theme: light", light)
    seen.page.click("#theme")
    assert seen.page.evaluate(background) != light
    seen.page.reload()
    assert seen.page.inner_text("#theme") == "Theme: dark"
    assert seen.page.evaluate(background) != light


def test_it_fits_every_width(demo, visit):
    seen = visit(demo.url)
    seen.page.wait_for_selector(".gpu")
    for width in (320, 390, 700, 1000, 1280, 1920):
        seen.page.set_viewport_size({"width": width, "height": 844})
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_asks_every_two_seconds_and_not_at_all_while_hidden(demo, browser, visit):
    context = browser.new_context()
    seen = Visit(context)
    seen.page.clock.install()
    seen.page.goto(demo.url)
    seen.page.wait_for_selector(".gpu")

    def hide(hidden):
        seen.page.evaluate(
            """hidden => {
              Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
              document.dispatchEvent(new Event("visibilitychange"));
            }""",
            hidden,
        )

    def advance(milliseconds):
        before = seen.polls()
        with seen.page.expect_response("**/api/vitals"):
            seen.page.clock.run_for(milliseconds)
        return seen.polls() - before

    assert advance(2000) == 1
    seen.page.wait_for_function("() => document.getElementById('age').textContent === 'last update 0 s ago'")
    hide(True)
    before = seen.polls()
    seen.page.clock.run_for(60_000)
    seen.page.evaluate("fetch('healthz')")  # whatever was asked for before has been counted when this is answered
    assert seen.polls() == before
    with seen.page.expect_response("**/api/vitals"):
        hide(False)
    context.close()


@pytest.fixture
def crowd(tmp_path):
    """The demo with 20 engines and 40 GPUs."""
    size = ("--engines", 20, "--simulated-gpus", 40, "--base-port", demo_ports(20))
    program = Exporter(*size, *QUICK, command="demo", log=tmp_path / "log")
    program.ready(f"{program.url}/readyz")
    yield program
    program.stop()


def test_many_engines_and_gpus_stay_on_the_page(crowd, visit):
    seen = visit(crowd.url)
    seen.page.wait_for_selector(".gpu:nth-child(40)")
    assert seen.page.locator(".engine").count() == 20
    heights = "nodes => nodes.map((node) => node.clientHeight)"
    assert max(seen.page.eval_on_selector_all(".engine", heights)) < 60
    assert max(seen.page.eval_on_selector_all(".gpu", heights)) < 120
    for width in (390, 800, 1280):
        seen.page.set_viewport_size({"width": width, "height": 800})
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    letters = seen.page.eval_on_selector_all(".engine .tag", "nodes => nodes.map((node) => node.textContent)")
    assert len(set(letters)) == 20


def test_without_engine_and_gpu_it_says_what_to_do(run_exporter, visit):
    exporter = run_exporter(gpus="on")
    wait_for(lambda: "not here" in str(exporter.get("/api/vitals").json["messages"]), "the verdict on the library")
    seen = visit(exporter.url)
    wait_text(seen, "#headline", "Nothing to watch yet: no engine, no GPU")
    no_gpu, no_engine = exporter.get("/api/vitals").json["messages"]
    assert "libnvidia-ml.so.1" in no_gpu
    assert "vllm-vitals up" in no_engine
    assert seen.page.inner_text("#no-gpu") == no_gpu
    assert seen.page.inner_text("#no-engine") == no_engine
    assert seen.page.locator(".engine, .gpu").count() == 0


def test_an_engine_that_nobody_serves_is_down_in_words(run_exporter, visit):
    exporter = run_exporter("--engine", f"lonely=http://127.0.0.1:{free_port()}", *QUICK)
    seen = visit(exporter.url)
    wait_text(seen, "#headline", "1 engine down: lonely (refused)")
    assert seen.page.inner_text(".engine .state") == "down (refused)"
    assert seen.page.inner_text(".engine .notes") == "nobody listens at its address"
    assert seen.page.get_attribute("#problems a", "href") == f"#{seen.page.get_attribute('.engine', 'id')}"
    assert seen.page.get_attribute("#verdict", "data-level") == "critical"
    assert seen.page.title() == "1 engine down: lonely (refused)"
    assert seen.page.inner_text("#no-gpu") == "GPUs are switched off in the settings (gpus.enabled)."
    figures = seen.page.locator(".engine .figure")
    assert figures.all_inner_texts()
    assert {node.get_attribute("title") for node in figures.all()} == {"the engine is down"}


def test_an_engine_that_comes_back_leaves_a_gap(captured, run_exporter, visit):
    with FaultyServer(x=page(captured("metrics-idle"))) as server:
        exporter = run_exporter("--engine", f"llm={server.url}/x", *QUICK)
        seen = visit(exporter.url)
        wait_text(seen, "#headline", "All well: 1 engine")
        lines = "document.querySelector('.engine svg path:nth-child(2)').getAttribute('d')"
        seen.page.wait_for_function(f"() => ({lines} ?? '').includes('L')")
        dash = seen.page.locator(".engine .figure", has_text="p50").first
        assert dash.locator("b").inner_text() == DASH
        assert dash.get_attribute("title") == "no requests in the last minute"

        model = seen.page.inner_text(".engine .model")
        server.behaviours["x"] = status(500)
        wait_text(seen, "#headline", "1 engine down: llm")
        assert seen.page.inner_text(".engine .model") == model != ""

        server.behaviours["x"] = page(captured("metrics-idle"))
        wait_text(seen, "#headline", "All well: 1 engine")
        wait_text(seen, ".engine .state", "up")
        seen.page.wait_for_function(f"() => {lines}.match(/M/g).length === 2")


def test_names_that_engines_tell_are_text(captured, run_exporter, visit):
    name = re.search(rb'model_name="([^"]+)"', captured("metrics"))[1]
    body = captured("metrics").replace(name, HOSTILE.encode())
    with FaultyServer(x=page(body)) as server:
        exporter = run_exporter("--engine", f"{server.url}/x", *QUICK)
        seen = visit(exporter.url)
        wait_text(seen, ".engine .model", "onerror")
        assert seen.page.inner_text(".engine .model") == HOSTILE
        assert seen.page.get_attribute(".engine .model", "title") == HOSTILE
        assert seen.page.locator("img, main script").count() == 0
        assert seen.page.evaluate("window.hacked") is None


def test_promises_are_listed_and_alerts_of_others_are_text(captured, run_exporter, visit, tmp_path):
    sla = tmp_path / "sla.yaml"
    sla.write_text(
        "services: [{name: chat, selector: {job: vllm}, objectives: {ttft: 99% under 500ms, availability: 99.9%}}]\n"
    )
    alert = {
        "labels": {"alertname": HOSTILE, "severity": "page", "server": HOSTILE},
        "annotations": {"summary": HOSTILE, "description": HOSTILE, "runbook_url": "javascript:window.hacked=1"},
        "startsAt": "2026-01-01T00:00:00Z",
        "status": {"state": "active", "silencedBy": [], "inhibitedBy": []},
    }
    good = alert | {"labels": {"alertname": "Fine", "severity": "ticket"}, "annotations": {"runbook_url": "docs/x.md"}}
    with FaultyServer(x=page(captured("metrics-idle")), am=page(json.dumps([alert, good]).encode())) as server:
        exporter = run_exporter(
            "--engine", f"llm={server.url}/x", "--sla", sla, "--alertmanager", f"{server.url}/am", *QUICK
        )
        seen = visit(exporter.url)
        wait_text(seen, "#headline", f"2 alerts fire: {HOSTILE}, Fine")
        assert seen.page.get_attribute("#verdict", "data-level") == "critical"
        wait_text(seen, ".promises", "99% under 500ms")
        assert seen.page.locator(".promises b").all_inner_texts() == [DASH, DASH]
        assert "not known" in seen.page.inner_text(".promises")
        assert seen.page.inner_text("#alert-list b >> nth=0") == HOSTILE
        assert seen.page.locator("#alert-list a[href]").count() == 1
        assert seen.page.get_attribute("#alert-list a[href]", "href") == f"{exporter.url}/docs/x.md"
        assert seen.page.locator("img, main script").count() == 0
        assert seen.page.evaluate("window.hacked") is None
        assert get(f"{exporter.url}/health/engine").status == 200  # a liveness probe knows no promises

        server.behaviours["am"] = status(500)
        wait_text(seen, "#alert-list", "Alertmanager cannot be read")
        wait_text(seen, "#headline", "alerts of Alertmanager cannot be read")
        for scheme in ("light", "dark"):
            seen.page.emulate_media(color_scheme=scheme)
            assert seen.page.evaluate(FAINT) == []


def test_gpus_tell_xids_throttling_and_loss_in_words(fake_nvml, run_exporter, visit):
    with fake_nvml.state.batch():
        fake_nvml.state.set(1, "reasons", 0x20)
        fake_nvml.state.set(2, "reasons", 0x4)
        fake_nvml.state.set(2, "mem_used", 40 << 30)
    exporter = run_exporter("--gpu-interval", "200ms", *QUICK, env=fake_nvml.env, gpus="on")
    seen = visit(exporter.url)
    seen.page.wait_for_selector(".gpu:nth-child(8)")
    fake_nvml.state.xid(0, 79)
    wait_text(seen, ".gpu:nth-child(1) .notes", "XID 79: GPU has fallen off the bus, ")
    assert re.search(r", \d+ s ago$", seen.page.inner_text(".gpu:nth-child(1) .notes"))
    assert seen.page.inner_text(".gpu:nth-child(1) .state") == "critical"
    assert seen.page.inner_text(".gpu:nth-child(2) .notes") == "slowed down: too hot"
    assert seen.page.inner_text(".gpu:nth-child(2) .state") == "warning"
    assert seen.page.inner_text(".gpu:nth-child(3) .notes") == "at its power limit"
    assert seen.page.inner_text(".gpu:nth-child(3) .state") == "ok"
    bar = seen.page.locator(".gpu:nth-child(3) .bar").evaluate("bar => parseFloat(bar.style.backgroundSize)")
    assert bar == pytest.approx(50.2, abs=0.2)
    assert seen.page.inner_text("#headline") == (
        "1 GPU critical: GPU 0 (XID 79: GPU has fallen off the bus); 1 GPU with a warning: GPU 1 (slowed down: too hot)"
    )

    fake_nvml.state.lose(3)
    wait_text(seen, ".gpu:nth-child(4) .notes", "not readable: lost, it fell off the bus")
    titles = {node.get_attribute("title") for node in seen.page.locator(".gpu:nth-child(4) .figure").all()}
    assert titles == {"this GPU cannot be read"}
    wait_text(seen, "#headline", "1 GPU not readable: GPU 3")
    for scheme in ("light", "dark"):
        seen.page.emulate_media(color_scheme=scheme)
        assert seen.page.evaluate(FAINT) == []


def test_it_says_when_the_exporter_is_gone_and_recovers(run_exporter, run_program, visit):
    exporter = run_exporter(*QUICK)
    seen = visit(exporter.url, complaints=True)  # Chromium itself writes a refused connection to the console
    wait_text(seen, "#headline", "Nothing to watch yet")
    exporter.stop()
    wait_text(seen, "#headline", "Connection to the exporter lost, retrying")
    assert seen.page.get_attribute("#verdict", "data-level") == "critical"
    seen.page.wait_for_function("() => /last update [1-9]\\d* s ago/.test(document.getElementById('age').textContent)")

    run_program(VITALS, "exporter", "--listen", f"127.0.0.1:{exporter.port}", "--gpus", "off", "--host", "off")
    wait_text(seen, "#headline", "Nothing to watch yet")
    assert seen.page.locator("body.lost").count() == 0
    assert all("ERR_CONNECTION_REFUSED" in words for words in seen.complaints)


def test_an_error_of_the_exporter_is_said(demo, visit):
    seen = visit(demo.url, complaints=True)
    seen.page.wait_for_selector(".gpu")
    seen.page.route("**/api/vitals", lambda route: route.fulfill(status=503))
    wait_text(seen, "#headline", "The exporter answers with 503, retrying")
    seen.page.unroute("**/api/vitals")
    seen.page.wait_for_function("() => !document.body.classList.contains('lost')")


def test_the_files_of_the_page_are_small(demo):
    paths = ("/", "/vitals.css", "/vitals.js", "/favicon.svg")
    assert sum(len(demo.get(path).body) for path in paths) < 33 * 1024
