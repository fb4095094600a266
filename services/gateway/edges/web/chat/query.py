"""What a caller of `/api/chat` asks for in the URL, with the names of Moshi's Rust server and of PersonaPlex.

Unknown names are ignored, as Moshi's servers do. What is known and can't be had is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.callers import New, Resumed
from services.mesh.errors import InvalidRequest

# A caller that sends one of these speaks to Rust's server as well, and wants metadata and a handshake like there.
RUST_NAMES = frozenset(("text_temperature", "text_topk", "audio_temperature", "audio_topk", "max_steps", "text_seed",
                        "audio_seed", "pad_mult", "repetition_penalty_context", "repetition_penalty", "email"))
_MOST_STEPS = 1 << 24  # of any conversation
_MOST_PENALTY_CONTEXT = 128  # of the language model
_VOICE_FILE = re.compile(r"([A-Za-z0-9_-]{1,64})(\.pt)?")


@dataclass(frozen=True)
class Asked:
    """A caller's wishes."""

    new: New
    rust: bool
    """Which of the two dialects it speaks."""
    max_steps: int | None
    """End well after so many answers."""
    can_resume: bool
    """Whether it knows what to do with a resume handle."""
    resumes: bool
    """Whether its first message names the conversation to go on with."""


def read_query(query: Mapping[str, str]) -> Asked:
    """Raises InvalidRequest."""
    sampling = lm_pb2.Sampling(
        text_temperature=_float(query, "text_temperature", 0, 10),
        text_top_k=_number(query, "text_topk", 0, (1 << 32) - 1),
        audio_temperature=_float(query, "audio_temperature", 0, 10),
        audio_top_k=_number(query, "audio_topk", 0, (1 << 32) - 1), seed=_seed(query),
        padding_bonus=_float(query, "pad_mult", -10, 10),
        repetition_penalty=_float(query, "repetition_penalty", 0.1, 10),
        repetition_penalty_context=_penalty_context(query))
    resume = query.get("resume", "")
    return Asked(New(sampling, query.get("model", ""), _voice(query), query.get("text_prompt", "")),
                 not RUST_NAMES.isdisjoint(query), _number(query, "max_steps", 1, _MOST_STEPS),
                 resume in ("1", "again"), resume == "again")


def read_resumed(payload: bytes) -> Resumed:
    """The conversation that a client's first metadata message names. Raises InvalidRequest."""
    try:
        told: Any = json.loads(payload)
        handle, first, answered = told["resume_handle"], told["first_sequence"], told.get("answered_sequence")
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        handle = first = answered = None
    if not isinstance(handle, str) or not _is_sequence(first) or not (answered is None or _is_sequence(answered)):
        raise InvalidRequest("BAD_METADATA", "with resume=again the first message must be metadata (kind 4): JSON with "
                             "resume_handle, first_sequence and perhaps answered_sequence", field="resume_handle")
    return Resumed(handle, first, answered)


def _is_sequence(value: object) -> bool:
    return type(value) is int and value >= 0


def _seed(query: Mapping[str, str]) -> int | None:
    """One seed for text and audio. PersonaPlex's is one already, and negative for a random one; Rust's server has two,
    so the same two always give the same one.
    """
    if "seed" in query:
        seed = _number(query, "seed", -(1 << 63), (1 << 64) - 1)
        return None if seed is None or seed < 0 else seed
    text, audio = (_number(query, name, 0, (1 << 64) - 1) for name in ("text_seed", "audio_seed"))
    if text is None or audio is None:
        return text if audio is None else audio
    return (text * 0x9E3779B97F4A7C15 + audio) % (1 << 64)  # 2**64 over the golden ratio: neighbours spread


def _voice(query: Mapping[str, str]) -> str:
    """The voice's name: the file that PersonaPlex has for it, never a path."""
    asked = query.get("voice_prompt", "")
    if not asked:
        return ""
    match = _VOICE_FILE.fullmatch(asked)
    if not match:
        raise InvalidRequest("UNKNOWN_VOICE", "voice_prompt must be the name of a voice, such as NATF0.pt",
                             field="voice_prompt")
    return match[1]


def _penalty_context(query: Mapping[str, str]) -> int | None:
    """Moshi's web client offers up to 200 tokens, where the mesh looks back at 128; it matters little there."""
    asked = _number(query, "repetition_penalty_context", 0, 1 << 16)
    return None if asked is None else min(asked, _MOST_PENALTY_CONTEXT)


def _float(query: Mapping[str, str], name: str, low: float, high: float) -> float | None:
    if name not in query:
        return None
    try:
        value = float(query[name])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise _out_of_range(name, low, high)
    return value


def _number(query: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    if name not in query:
        return None
    text = query[name]
    value = int(text) if re.fullmatch("-?[0-9]{1,20}", text) else low - 1
    if not low <= value <= high:
        raise _out_of_range(name, low, high)
    return value


def _out_of_range(name: str, low: float, high: float) -> InvalidRequest:
    return InvalidRequest("BAD_QUERY", f"{name} must be a number from {low:g} to {high:g}", field=name,
                          accepted=f"{low:g}..{high:g}")
