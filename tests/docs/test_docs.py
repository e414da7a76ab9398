"""What the docs say is what the code does."""

import subprocess
import sys
from pathlib import Path

from vllm_vitals.config import Settings, load

ROOT = Path(__file__).parents[2]


def test_metrics_page_is_up_to_date():
    script = ROOT / "docs/metrics.py"
    assert subprocess.run([sys.executable, script, "--check"]).returncode == 0, f"run {script}"


def test_the_settings_file_of_the_docs_holds_the_defaults():
    assert load(ROOT / "docs/vitals.yaml", {}, {}) == Settings()
