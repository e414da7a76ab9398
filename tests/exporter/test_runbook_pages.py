"""The runbooks that the exporter serves: every link of an alert leads to one, and a person can read it."""

import html
import re
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
import yaml
from vllm_vitals.alerts.build import GENERATED
from vllm_vitals.alerts.runbooks import runbooks
from vllm_vitals.alerts.sla import DEFAULT_RUNBOOKS
from vllm_vitals.alerts.sla_file import load
from vllm_vitals.exporter.live.runbook_pages import SHIPPED, RunbookPages, render
from vllm_vitals.settings.scalars import ConfigError

PAGES = sorted(SHIPPED.glob("*.md"))


def links() -> set[str]:
    found = set()
    for path in GENERATED.glob("*.rules.yml"):
        for group in yaml.safe_load(path.read_text())["groups"]:
            found |= {rule["annotations"]["runbook_url"] for rule in group["rules"] if "alert" in rule}
    return found


def test_every_link_of_the_generated_rules_leads_to_its_heading(run_exporter):
    exporter = run_exporter()
    assert len(links()) > 40
    for link in links():
        assert link.startswith(f"{DEFAULT_RUNBOOKS}/")
        url = urlsplit(link)
        answer = exporter.get(url.path)
        assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8"), link
        name = url.path.rpartition("/")[2].removesuffix(".md")
        assert f'<h1 id="{name.lower()}">{name}</h1>' in answer.text
        assert not url.fragment or f'id="{url.fragment}"' in answer.text, link


def test_the_index_leads_to_every_page_and_needs_nothing_from_elsewhere(run_exporter):
    exporter = run_exporter()
    index = exporter.get("/docs/runbooks/")
    assert "script" not in index.text
    assert "default-src 'none'" in index.headers["content-security-policy"]
    names = re.findall(r'<a href="([A-Za-z0-9]+\.md)">', index.text)
    assert {*names} == {path.name for path in PAGES} - {"README.md"}
    assert exporter.get("/docs.css").status == 200
    assert "The numbers on this page are those of the default promises." in index.text


def test_without_the_slash_it_leads_there(run_exporter):
    exporter = run_exporter()
    answer = exporter.get("/docs/runbooks")
    assert (answer.status, urljoin(f"{exporter.url}/docs/runbooks", answer.headers["location"])) == (
        301, f"{exporter.url}/docs/runbooks/",
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["Nothing.md", "../metrics.md", "..%2Fmetrics.md", "%2e%2e/metrics.md", "/etc/passwd", "README.md/", "a/b", "x\0",
     ".", "..", "a" * 3000, "README.md.md"],
)  # fmt: skip
def test_a_name_that_is_none_of_ours_is_404(name):
    assert RunbookPages().page(name) is None


def test_the_exporter_says_what_there_is(run_exporter):
    exporter = run_exporter()
    answer = exporter.get("/docs/runbooks/Nothing.md")
    assert (answer.status, answer.text) == (404, "no runbook of that name; /docs/runbooks/ lists them\n")
    answer = exporter.get("/nothing")
    assert answer.status == 404
    for path in answer.text.removeprefix("not found; there are ").split():
        assert exporter.get(path).status in {200, 503}, path
    for path in ("/", "/metrics/requests", "/api/vitals", "/docs/runbooks/", "/health/gpu"):
        assert f" {path}" in answer.text


def test_runbooks_ask_for_the_password_like_the_live_page(run_exporter, tmp_path):
    hashed = "$2b$04$" + "x" * 22 + "y" * 31
    (tmp_path / "web.yml").write_text(f"basic_auth_users: {{ops: '{hashed.replace('x' * 22, 'x' * 21 + 'O')}'}}\n")
    exporter = run_exporter("--web.config.file", tmp_path / "web.yml", wait=False)
    exporter.ready(f"{exporter.url}/healthz", status=401)
    assert exporter.get("/docs/runbooks/").status == 401


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_nothing_of_the_markup_is_left_in_a_page(path):
    made = render(path.read_text())
    prose = re.sub(r"(?s)<pre>.*?</pre>|<code>.*?</code>", "", made)
    for mark in ("**", "```", "](", "<!--"):
        assert mark not in prose, mark
    assert not re.search(r"(?m)^(<p>)?(#|\||[0-9]+\. )", prose)
    for code in re.findall(r"(?ms)^( *)```[a-z]*\n(.*?)^ *```$", path.read_text()):
        text = "\n".join(line.removeprefix(code[0]) for line in code[1].rstrip("\n").split("\n"))
        assert html.escape(text) in made


def test_whatever_a_page_holds_does_not_run():
    made = render('# <b>\n\n<script>x</script> [a](javascript:x) [b](https://x.example/?a=1&b="2) `<i>` **<u>**\n')
    assert "<script" not in made
    assert "<b>" not in made
    assert 'href="javascript' not in made
    assert 'href="https://x.example/?a=1&amp;b=&quot;2"' in made
    assert "<code>&lt;i&gt;</code> <strong>&lt;u&gt;</strong>" in made


def test_pages_of_your_own_promises_are_served(run_exporter, sla_pages):
    exporter = run_exporter("--runbooks", sla_pages)
    page = exporter.get("/docs/runbooks/VLLMTTFTBudgetBurn.md").text
    assert "promises ttft 97% under 2.5s" in page
    assert "default promises" not in page


def test_a_folder_without_runbooks_is_wrong_input(command, tmp_path):
    code, _, err = command("exporter", "--runbooks", tmp_path)
    assert code == 2
    assert f"runbooks: expected a folder that `rules build --runbooks` wrote, found {tmp_path}" in err
    with pytest.raises(ConfigError):
        RunbookPages(tmp_path / "none")


@pytest.fixture
def sla_pages(tmp_path) -> Path:
    text = "services: [{name: a, selector: {job: x}, objectives: {ttft: 97% under 2.5s}}]\n"
    (tmp_path / "sla.yaml").write_text(text)
    folder = tmp_path / "pages"
    folder.mkdir()
    for name, page in runbooks(load(tmp_path / "sla.yaml")).items():
        (folder / name).write_text(page)
    return folder


def test_links_go_to_the_exporter_unless_the_sla_names_another_place(tmp_path):
    assert load().with_exporter("https://x.example:1/").runbooks == "https://x.example:1/docs/runbooks"
    services = "services: [{name: a, selector: {job: x}, objectives: {ttft: 97% under 2.5s}}]\n"
    (tmp_path / "sla.yaml").write_text(f"runbooks: https://wiki.example/r\n{services}")
    assert load(tmp_path / "sla.yaml").with_exporter("http://127.0.0.1:1").runbooks == "https://wiki.example/r"
