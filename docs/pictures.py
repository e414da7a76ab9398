"""Keeps the pictures of the documentation small and crisp: few colours, no scaling, a cut where one is too large.

.venv/bin/python docs/pictures.py PICTURE.png ...     encodes those again that are too large
"""

import argparse
import io
from pathlib import Path
from typing import Final

from PIL import Image

LIMIT: Final = 250_000  # bytes of one picture: a page of the documentation opens at once on a slow line
COLOURS: Final = (256, 128)  # fewer would blur the edges of letters


def store(image: Image.Image, path: Path) -> list[Path]:
    """Write a picture as files of at most `LIMIT` bytes; returns them: FILE.png, and FILE-2.png, ... below each cut.

    A cut goes along a row of pixels of one colour, so never through a word. Raises ValueError where there is none.
    """
    for old in path.parent.glob(f"{path.stem}-[0-9].png"):
        old.unlink()
    paths = []
    for number, data in enumerate(encoded(image.convert("RGB")), 1):
        paths.append(path if number == 1 else path.with_name(f"{path.stem}-{number}.png"))
        paths[-1].write_bytes(data)
    return paths


def encoded(image: Image.Image) -> list[bytes]:
    """Return one PNG, or several where it would be too large: the upper part first."""
    for colours in COLOURS:
        data = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
        if data.tell() <= LIMIT:
            return [data.getvalue()]
    row = empty_row(image)
    upper, lower = (0, 0, image.width, row), (0, row, image.width, image.height)
    return [*encoded(image.crop(upper)), *encoded(image.crop(lower))]


def empty_row(image: Image.Image) -> int:
    """Return the row of pixels of one colour that is next to the middle; raises ValueError where there is none."""
    middle = image.height // 2
    for row in sorted(range(1, image.height), key=lambda row: abs(row - middle)):
        if image.crop((0, row, image.width, row + 1)).getcolors(1) is not None:
            return row
    raise ValueError(f"expected a row of one colour to cut at, found none in {image.width} x {image.height} pixels")


def main() -> None:
    """Encode those of the named pictures again that are too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE.png")
    for path in parser.parse_args().pictures:
        before = path.stat().st_size
        if before <= LIMIT:  # and it may be the upper part of one that was cut: its lower part must stay
            continue
        with Image.open(path) as image:
            image.load()
        for written in store(image, path):
            print(f"{written}: {written.stat().st_size:,} bytes (before: {before:,})")


if __name__ == "__main__":
    main()
