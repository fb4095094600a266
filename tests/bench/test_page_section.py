"""The page's section in the benchmarks: two commands write one file."""

from __future__ import annotations

from pathlib import Path

from bench import page_section


def test_the_pages_figures_are_replaced_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.md"
    path.write_text("# Benchmarks\n\n## Capacity\n\nmany\n")
    assert page_section.kept(path) == ""
    for correlation in (0.5, 0.99):
        page_section.write({"heard_correlation": correlation, "not_shown": 1, "load": 3.4}, path)
    text = path.read_text()
    assert text.startswith("# Benchmarks\n\n## Capacity\n\nmany\n\n## The page in a browser\n")
    assert "**0.99**" in text and "0.5" not in text and "not_shown" not in text
    assert text.endswith(page_section.kept(path))
