"""Flags that talk and call share: how the model speaks."""

from __future__ import annotations

import argparse
from typing import Any


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    group = parser.add_argument_group("the model")
    group.add_argument("--model", default="", help="one of those that `moshimesh info` lists (default: any)")
    group.add_argument("--voice", default="", help="a voice that the mesh knows by this name")
    group.add_argument("--text-prompt", default="", help="what the model is told before it hears anything")
    group.add_argument("--text-temperature", type=float, help="0 is greedy")
    group.add_argument("--text-top-k", type=int)
    group.add_argument("--audio-temperature", type=float, help="0 is greedy")
    group.add_argument("--audio-top-k", type=int)
    group.add_argument("--seed", type=int, help="the same seed and audio give the same answer")
    group.add_argument("--events", action="store_true", help="show when each side starts and stops to speak, and more")


def sampling_of(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of Mesh.converse."""
    return {name: getattr(options, name) for name in (
        "model", "voice", "text_prompt", "text_temperature", "text_top_k", "audio_temperature", "audio_top_k", "seed")}
