"""The corpus of each parser, which the fuzzer has found, and what is between the parser and the fuzzer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.corpora import FOLDER, kept, least, slug
from tests.fuzz.parsers import PARSERS


@pytest.mark.parametrize("name", PARSERS)
def test_what_was_found_once_is_taken_or_refused(name: str) -> None:
    assert kept(name)
    for data in kept(name):
        PARSERS[name](data)


def test_the_corpus_is_small_and_of_these_parsers() -> None:
    files = list(FOLDER.iterdir())
    assert {path.stem for path in files} == {slug(name) for name in PARSERS}
    assert sum(path.stat().st_size for path in files) < 200_000


def test_what_reaches_nothing_new_is_not_kept() -> None:
    assert least(PARSERS["traceparents"], [b"", b"a", b"b", b"00-" + b"1" * 32 + b"-" + b"1" * 16 + b"-01"]) == [
        b"", b"00-" + b"1" * 32 + b"-" + b"1" * 16 + b"-01"]


def last(said: str) -> dict[str, Any]:
    """What the fuzzer has said last; atheris prints a failure, too."""
    told: dict[str, Any] = json.loads([line for line in said.splitlines() if line.startswith("{")][-1])
    return told


def test_the_fuzzer_says_how_many_inputs_it_has_tried(tmp_path: Path) -> None:
    said = subprocess.run([sys.executable, "-m", "tests.fuzz.guided", "traceparents", str(tmp_path), "--runs", "500"],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    facts = last(said)
    assert facts["done"] and facts["inputs"] == 500
    assert facts["crashes"] == facts["hangs"] == facts["internal"] == facts["grown_fds"] == 0


def test_a_parser_that_fails_is_told_and_its_input_is_kept(tmp_path: Path) -> None:
    script = """
import pathlib
from tests.fuzz import guided, parsers
guided.FAILED = pathlib.Path(sys.argv[2])
parsers.PARSERS = {"bad": lambda data: 1 / 0 if len(data) > 3 else None}
guided.main()
"""
    (corpus := tmp_path / "corpus").mkdir()
    (corpus / "seed").write_bytes(b"abcde")
    said = subprocess.run([sys.executable, "-c", script.replace("sys.argv[2]", repr(str(tmp_path / "failed"))), "bad",
                           str(corpus), "--runs", "500"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    facts = last(said.stdout)
    assert said.returncode and facts["crashes"] == 1
    assert (tmp_path / "failed" / "corpus.input").read_bytes() == b"abcde"
