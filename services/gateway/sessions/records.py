"""A session in Redis: a hash (its record) and a list (its journal). Their names can only be derived from its handle.

The record's plain fields are for operators and for the scripts that keep one owner. What was said is in sealed messages
of protos/moshimesh/journal: `facts` in the record, chunks in the journal. CONTRIBUTING.md has the rules for a change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError
from moshimesh.journal.v1 import journal_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.sessions.history import History
from services.gateway.sessions.sealing import Handle
from services.mesh.errors import ResumeIncompatible

FORMAT_VERSION = 2  # the highest that this gateway reads
PLAIN_VERSION = 1  # what it writes where nothing in a message needs more
OLDEST_VERSION = 1  # the lowest that it reads

_FACTS, _CHUNK = b"facts", b"chunk"  # part of each seal, so that facts can't be passed off as a chunk

_Message = TypeVar("_Message", journal_pb2.Facts, journal_pb2.Chunk)


@dataclass
class Record:
    """A session, as far as it is kept."""

    session_id: str
    model_id: str
    codec_id: str
    sampling: lm_pb2.Sampling
    """The sampling in force, all fields set."""
    history: History
    age_s: float = 0.0
    """How long the call had lasted when this was written, without the time between a cut and a resumption."""


def keys_of(name: str) -> tuple[str, str]:
    """The keys of a session's record and journal; the braces keep them on one node of a cluster."""
    return f"moshimesh:{{{name}}}:session", f"moshimesh:{{{name}}}:journal"


def seal_facts(handle: Handle, record: Record) -> bytes:
    """The part of a record that does not change with each step."""
    history = record.history
    facts = journal_pb2.Facts(
        # Who skips the prompt goes on with other tokens.
        format_version=FORMAT_VERSION if history.prompt else PLAIN_VERSION, session_id=record.session_id,
        model_id=record.model_id, codec_id=record.codec_id, user_codebooks=history.user_codebooks,
        own_codebooks=history.own_codebooks, delay_frames=history.delay_frames, context_frames=history.context_frames,
        sampling=record.sampling, prompt=history.prompt)
    return handle.seal(facts.SerializeToString(), _FACTS)


def seal_chunk(handle: Handle, history: History, first_step: int, age_s: float) -> bytes:
    """The steps from first_step on."""
    chunk = history.chunk(first_step)
    # Who skips the controls goes on with other tokens.
    chunk.format_version = FORMAT_VERSION if chunk.controls else PLAIN_VERSION
    chunk.age_ms = round(age_s * 1000)
    return handle.seal(chunk.SerializeToString(), _CHUNK)


def open_record(handle: Handle, facts: bytes, chunks: Sequence[bytes]) -> Record:
    """The session that was written.

    Raises:
        ResumeIncompatible: a gateway of another version has written it in a format that this one does not know.
        ValueError: it is damaged.
    """
    read = _parse(journal_pb2.Facts(), handle.open(facts, _FACTS))
    if not (read.user_codebooks and read.own_codebooks and read.context_frames):
        raise ValueError("a session without codebooks or context")
    history = History(read.user_codebooks, read.own_codebooks, read.delay_frames, read.context_frames)
    history.prompt = read.prompt if read.HasField("prompt") else None
    record = Record(read.session_id, read.model_id, read.codec_id, read.sampling, history)
    for sealed in chunks:
        chunk = _parse(journal_pb2.Chunk(), handle.open(sealed, _CHUNK))
        history.extend(chunk)
        record.age_s = chunk.age_ms / 1000
    return record


def _parse(message: _Message, data: bytes) -> _Message:
    """Fill the message. The seal was whole, so a gateway has written the data: a later one if it does not parse."""
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise ResumeIncompatible(_INCOMPATIBLE.format("a format")) from None
    if not OLDEST_VERSION <= message.format_version <= FORMAT_VERSION:
        raise ResumeIncompatible(_INCOMPATIBLE.format(f"version {message.format_version} of the format"),
                                 written=message.format_version, oldest=OLDEST_VERSION, newest=FORMAT_VERSION)
    return message


_INCOMPATIBLE = (f"the conversation was written in {{}} that this gateway does not read (it reads {OLDEST_VERSION} to "
                 f"{FORMAT_VERSION}); during an upgrade another gateway can, so try again")
