"""What the docs say is what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_vitals.config import Settings, load

ROOT = Path(__file__).parents[2]


def test_metrics_page_is_up_to_date():
    script = ROOT / "docs/metrics.py"
    assert subprocess.run([sys.executable, script, "--check"]).returncode == 0, f"run {script}"


def test_the_settings_file_of_the_docs_holds_the_defaults():
    assert load(ROOT / "docs/vitals.yaml", {}, {}) == Settings()


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))],
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
