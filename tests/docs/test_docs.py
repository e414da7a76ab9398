"""What the docs say is what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_vitals.settings.config import Settings, load

ROOT = Path(__file__).parents[2]


def test_metrics_page_is_up_to_date():
    script = ROOT / "docs/metrics.py"
    assert subprocess.run([sys.executable, script, "--check"]).returncode == 0, f"run {script}"


def test_the_settings_file_of_the_docs_holds_the_defaults():
    assert load(ROOT / "docs/vitals.yaml", {}, {}) == Settings()


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))],
                         ids=lambda page: page.name)  # fmt: skip
def test_links_lead_to_files_and_headings_that_are_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"(?m)^#+ (.+)$", linked.read_text())
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, target


def test_the_chinese_readme_keeps_in_step():
    """Same code but for its comments, same links in the same sections, same rows in each table."""
    ours, theirs = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))
    assert [fact(section) for section in sections(theirs)] == [fact(section) for section in sections(ours)]


def sections(text: str) -> list[str]:
    return re.split(r"(?m)^## .*$", text)


def fact(section: str) -> tuple[list[str], list[str], list[str], list[str]]:
    code = [re.sub(r"(?m) *# .*$", "", block) for block in re.findall(r"(?ms)^ *```.*?^ *```$", section)]
    rest = re.sub(r"(?ms)^ *```.*?^ *```$", "", section)
    return (
        code,
        sorted(re.findall(r"\]\(([^)]+)\)", rest)),
        sorted(re.findall(r"`[^`]+`", rest.replace("\n", " "))),
        first_cells(rest),
    )


def first_cells(text: str) -> list[str]:
    """Return how each row of the tables begins, but for the heads."""
    return re.findall(r"(?m)^\| (?!---)(.+?) \|(?!.*\n\| ---)", text)
