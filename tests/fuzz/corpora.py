"""The corpus of each parser: a file with an input a line, in base64, of inputs that each reach something new."""

from __future__ import annotations

import base64
import contextlib
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz.seeds import SEEDS

FOLDER = Path(__file__).parent / "corpus"
MOST_BYTES = 7000  # of a parser's corpus, in base64: all of them stay below 200 kB
SERVICES = str(Path(__file__).resolve().parent.parent.parent / "services")


def slug(name: str) -> str:
    """A parser's name as a file's."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")


def kept(name: str) -> list[bytes]:
    """A parser's corpus."""
    path = FOLDER / f"{slug(name)}.txt"
    found = [base64.b64decode(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [*SEEDS.get(name, []), *found]


def keep(name: str, inputs: Iterable[bytes]) -> None:
    """Write a corpus, as much as there is room for."""
    lines, size = [], 0
    for one in inputs:
        line = base64.b64encode(one).decode()
        if size + len(line) + 1 <= MOST_BYTES:
            lines.append(line)
            size += len(line) + 1
    (FOLDER / f"{slug(name)}.txt").write_text("".join(f"{line}\n" for line in lines))


def least(parser: Callable[[bytes], None], inputs: Iterable[bytes]) -> list[bytes]:
    """The shortest of these inputs that go from a line of ours to another as no shorter one does."""
    seen: set[tuple[str, int, int]] = set()
    found = []
    for one in sorted(set(inputs), key=lambda data: (len(data), data)):
        if new := _steps(parser, one) - seen:
            seen |= new
            found.append(one)
    return found


def _steps(parser: Callable[[bytes], None], data: bytes) -> set[tuple[str, int, int]]:
    """The pairs of lines of services/ that an input goes through, one after the other."""
    steps: set[tuple[str, int, int]] = set()

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        name, last = frame.f_code.co_filename, 0
        if not name.startswith(SERVICES):
            return None

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            steps.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        with contextlib.suppress(Exception):
            parser(data)
    finally:
        sys.settrace(before)
    return steps
