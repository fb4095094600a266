"""`python -m tests.browser.pictures SHOTS`: docs/img/page-states.jpg of what test_access.py left in SHOTS."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from tests.browser.states import STATES
from tests.conftest import ROOT

OUT = ROOT / "docs" / "img"
COLUMNS, WIDTH, HEIGHT, GAP = 6, 240, 480, 12


def phone(shots: Path, name: str, look: str) -> Image.Image:
    """The upper part of a phone's picture."""
    picture = Image.open(shots / f"{name}-phone-{look}.png").convert("RGB")
    picture = picture.crop((0, 0, picture.width, min(picture.height, picture.width * HEIGHT // WIDTH)))
    return picture.resize((WIDTH, picture.height * WIDTH // picture.width), Image.Resampling.LANCZOS)


def main() -> None:
    """Every state, light and dark in turn."""
    shots = Path(sys.argv[1])
    rows = -(-len(STATES) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (WIDTH + GAP) + GAP, rows * (HEIGHT + GAP) + GAP), "#9aa29e")
    for index, name in enumerate(STATES):
        row, column = divmod(index, COLUMNS)
        look = ("en-light", "en-dark", "fr-light", "fr-dark")[(row + column) % 4]
        sheet.paste(phone(shots, name, look), (GAP + column * (WIDTH + GAP), GAP + row * (HEIGHT + GAP)))
    sheet.save(OUT / "page-states.jpg", quality=80)


if __name__ == "__main__":
    main()
