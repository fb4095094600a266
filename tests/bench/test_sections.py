"""Sections of the benchmarks: several commands write one file."""

from __future__ import annotations

from pathlib import Path

from bench import sections


def test_a_sections_figures_are_replaced_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.md"
    path.write_text("# Benchmarks\n\n## Capacity\n\nmany\n")
    page, direct = sections.SECTIONS["page"], sections.SECTIONS["direct"]
    assert sections.kept(path) == ""
    for correlation, starts in ((0.5, 7), (0.99, 0)):
        sections.write(page, {"heard_correlation": correlation, "not_shown": 1, "load": 3.4}, path)
        sections.write(direct, {"noise_starts": starts}, path)
    text = path.read_text()
    assert text.startswith(f"# Benchmarks\n\n## Capacity\n\nmany\n\n{page.heading}\n")
    assert "**0.99**" in text and "0.5" not in text and "not_shown" not in text
    assert text.count(direct.heading) == 1 and "| **0** |" in text and "**7**" not in text
    assert text.endswith(sections.kept(path) + "\n")
