"""The messages of Moshi's own protocol: a byte for the kind, then its payload."""

from __future__ import annotations

import json

from services.gateway.calls.events import GoAway, Ready, ResumeStatus

HANDSHAKE, AUDIO, TEXT, METADATA, ERROR = b"\x00", b"\x01", b"\x02", b"\x04", b"\x05"

# Rust's servers name the versions of protocol and model here; both have always been 0.
RUST_HANDSHAKE = HANDSHAKE + bytes(8)

# Moshi's web client takes all of this or nothing.
_BUILD_INFO = dict.fromkeys(("build_timestamp", "build_date", "git_branch", "git_timestamp", "git_date", "git_hash",
                             "git_describe", "rustc_host_triple", "rustc_version", "cargo_target_triple"), "")


def text(piece: str) -> bytes:
    """A piece of what the model says."""
    return TEXT + piece.encode()


def error(reason: str, message: str) -> bytes:
    """Why the call ends, for people."""
    return ERROR + f"{message} ({reason})".encode()


def metadata(ready: Ready, *, resumable: bool) -> bytes:
    """What is in force, with Rust's names. With the handle for a client that can resume."""
    sampling = ready.sampling
    told: dict[str, object] = {
        "text_temperature": sampling.text_temperature, "text_topk": sampling.text_top_k,
        "audio_temperature": sampling.audio_temperature, "audio_topk": sampling.audio_top_k,
        "pad_mult": sampling.padding_bonus, "repetition_penalty": sampling.repetition_penalty,
        "repetition_penalty_context": sampling.repetition_penalty_context,
        "lm_model_file": ready.model_id, "mimi_model_file": ready.codec_id, "instance_name": "moshi-mesh",
        "build_info": _BUILD_INFO}
    if resumable:
        told |= {"resume_handle": ready.resume_handle, "resume_grace_ms": round(ready.resume_grace_s * 1000),
                 "next_sequence": ready.next_sequence, "delay_frames": ready.delay_frames}
    return METADATA + json.dumps(told).encode()


def notice(event: GoAway | ResumeStatus) -> bytes:
    """What a client that can resume should know in the middle of a call."""
    told = ({"go_away_ms": round(event.time_left_s * 1000)} if isinstance(event, GoAway)
            else {"resume_available": event.available})
    return METADATA + json.dumps(told).encode()
