"""The pictures of the documentation are small, crisp and shown."""

import re
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from support.plain_install import tracked_files
from vllm_vitals.docs.pictures import LIMIT, store

ROOT = Path(__file__).parents[2]
PICTURES = [path for path in tracked_files() if path.suffix in {".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg"}]


@pytest.mark.parametrize("path", PICTURES, ids=str)
def test_a_picture_has_at_most_250_kb(path):
    assert (ROOT / path).stat().st_size <= 250_000


def test_every_picture_of_a_dashboard_is_shown():
    shown = re.findall(r"!\[[^]]+\]\((\S+)\)", (ROOT / "docs/dashboards/README.md").read_text())
    assert sorted(shown) == sorted(path.name for path in (ROOT / "docs/dashboards").glob("*.png"))


def noise(width: int, height: int, rows: range) -> Image.Image:
    """A picture that no encoding makes small, with rows of one colour."""
    image = Image.effect_noise((width, height), 90).convert("RGB")
    if rows:
        ImageDraw.Draw(image).rectangle((0, rows.start, width, rows.stop - 1), fill="black")
    return image


def test_a_small_picture_stays_one_file_of_the_same_size(tmp_path):
    image = noise(200, 300, range(100, 120))
    (path,) = store(image, tmp_path / "page.png")
    with Image.open(path) as stored:
        assert stored.size == image.size


def test_a_large_picture_is_cut_where_no_word_is(tmp_path):
    paths = store(noise(600, 900, range(400, 420)), tmp_path / "page.png")
    assert [path.name for path in paths] == ["page.png", "page-2.png"]
    assert all(path.stat().st_size <= LIMIT for path in paths)
    heights = []
    for path in paths:
        with Image.open(path) as part:
            heights.append(part.height)
    assert sum(heights) == 900
    assert 400 <= heights[0] <= 420


def test_parts_of_an_older_picture_go(tmp_path):
    store(noise(600, 900, range(400, 420)), tmp_path / "page.png")
    store(noise(200, 300, range(100, 120)), tmp_path / "page.png")
    assert [path.name for path in tmp_path.iterdir()] == ["page.png"]


def test_a_large_picture_without_a_row_to_cut_at_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a row of one colour"):
        store(noise(600, 900, range(0)), tmp_path / "page.png")
