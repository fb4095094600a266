"""Everything that parses what a stranger sends, as functions of bytes: one table for Hypothesis (the tests beside this
file) and for the coverage-guided fuzzer (guided.py).

A parser takes any bytes. An answer and an error of ours are both fine; any other exception, and any line that the log
calls an error, is a bug. Where an input has several parts they are separated by SEPARATOR.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from moshimesh.journal.v1 import journal_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.desk import ModelInfo
from services.gateway.calls.events import EventKind
from services.gateway.edges import pcm
from services.gateway.edges.ogg import OggOpusReader
from services.gateway.edges.opus import OpusDecoder, packet_ms
from services.gateway.edges.resampling import RATES_HERTZ, Resampler
from services.gateway.edges.web.chat.query import read_query as read_chat_query
from services.gateway.edges.web.chat.query import read_resumed
from services.gateway.edges.web.credentials import credential_of
from services.gateway.edges.web.live import session as live
from services.gateway.edges.web.live.reading import read_start
from services.gateway.edges.web.pcm import reading
from services.gateway.edges.web.realtime.dialects import Beta, Ga
from services.gateway.edges.web.realtime.faults import ClientFault
from services.gateway.edges.web.realtime.feed import Feed
from services.gateway.edges.web.realtime.offer import Offer
from services.gateway.edges.web.realtime.settings import A_LAW, MU_LAW, PCM, Format
from services.gateway.edges.web.realtime.sound import ear_of
from services.gateway.sessions.history import History
from services.gateway.sessions.records import Record, open_record, seal_chunk, seal_facts
from services.gateway.sessions.sealing import Handle
from services.gateway.trust.gate import OpenGate
from services.gateway.trust.keys import read_keys
from services.gateway.trust.tokens import SharedSecret, Tokens, read_key_set
from services.mesh import logs
from services.mesh.checkpoint_config import ConfigRefused, check_generation, check_lm, check_mimi
from services.mesh.errors import InvalidRequest, MeshError, ResumeIncompatible, UnknownSession
from services.mesh.fingerprint import safetensors_digest
from services.mesh.samples import LOUDEST, check_samples
from services.mesh.telemetry import read_traceparent
from tests.fuzz import streams
from tests.gateway.edges.web.realtime.told import READY, Talk

SEPARATOR = b"\xff\xfe\xff"
RATE = 24_000
SECRET = b"k" * 32
MODEL = ModelInfo("moshi", "mimi", RATE, 1920, 1, 1)
FORMATS = [pcm.S16LE, pcm.F32LE, pcm.G711_MU_LAW, pcm.G711_A_LAW]
WAVES = [Format(), Format(PCM, 8000), Format(PCM, 44_100), Format(MU_LAW, 8000), Format(A_LAW, 8000)]
# Of nobody's conversation; the same in each process, so that a corpus of sealed journals goes on to open.
HANDLE = Handle("A" * 43)


def text_of(data: bytes) -> str:
    """As headers come: bytes that are no UTF-8 are surrogates."""
    return data.decode(errors="surrogateescape")


def _choice(data: bytes, among: list[Any]) -> tuple[Any, bytes]:
    """One of these by the first byte, and the rest."""
    return among[data[0] % len(among) if data else 0], data[1:]


def pcm_json(data: bytes) -> None:
    """What a caller of /api/pcm says in text."""
    text = data.decode(errors="replace")
    with contextlib.suppress(InvalidRequest):
        reading.read_open(text).opening()
    with contextlib.suppress(InvalidRequest):
        told = reading.read_told(text)
        if not isinstance(told, reading.End | reading.Ping):
            told.control()


def queries(data: bytes) -> None:
    """What a URL asks for."""
    query = dict(parse_qsl(text_of(data), keep_blank_values=True, errors="surrogateescape"))
    with contextlib.suppress(InvalidRequest):
        asked = read_chat_query(query)
        assert "/" not in asked.new.voice and "." not in asked.new.voice
    with contextlib.suppress(InvalidRequest):
        reading.read_query(query).opening()


def chat_metadata(data: bytes) -> None:
    """The first message of a call that is resumed at /api/chat."""
    with contextlib.suppress(InvalidRequest):
        assert read_resumed(data).first_sequence >= 0


def credentials(data: bytes) -> None:
    """Headers, one a line, the query behind SEPARATOR."""
    head, _, query = data.partition(SEPARATOR)
    headers = {name.strip(): value.strip() for name, _, value in (
        line.partition(":") for line in text_of(head).split("\n"))}
    with contextlib.suppress(InvalidRequest):
        assert isinstance(credential_of(headers, dict(parse_qsl(text_of(query), errors="surrogateescape"))), str)


def realtime_json(data: bytes) -> None:
    """A dialect, an event of the conversation, and what a client of /v1/realtime sends."""
    beta, data = _choice(data, [False, True])
    event, data = _choice(data, list(EventKind))
    talk = Talk(Beta() if beta else Ga())
    for part in data.split(SEPARATOR)[:16]:
        try:
            talk.session.asked(part.decode())
        except UnicodeDecodeError:
            talk.session.asked(part)
        talk.inbox._feed.next()
        talk.event(event)
        talk.frames(1, "a")
    for message in talk.sent:
        json.dumps(message, allow_nan=False)


def live_json(data: bytes) -> None:
    """What a client of /v1/live/sessions sends."""
    start, *texts = (part.decode(errors="replace") for part in data.split(SEPARATOR)[:16])
    try:
        session = live.Session(read_start(start), MODEL, Offer(), 2_000_000_000)
    except ClientFault as fault:
        live.refused(fault)
        return
    for text in texts:
        for answer in [*session.asked(text), *session.told(READY)]:
            json.loads(answer)
    json.loads(session.failed(MeshError("no")))


def ogg_pages(data: bytes) -> None:
    """An Ogg stream, in pieces."""
    reader = OggOpusReader(RATE)
    with contextlib.suppress(InvalidRequest):
        for piece in data.split(SEPARATOR):
            for packet in reader.packets(piece):
                if not packet.startswith((b"OpusHead", b"OpusTags")):
                    assert 0 < packet_ms(packet) <= 120
                sound = reader.decode(packet)
                assert sound is None or (sound.dtype == np.float32 and len(sound) <= RATE * 0.12)


def opus_packets(data: bytes) -> None:
    """Opus packets of one stream."""
    decoder = OpusDecoder(RATE)
    for packet in data.split(SEPARATOR):
        with contextlib.suppress(InvalidRequest):
            sound = decoder.decode(packet)
            assert len(sound) <= RATE * 0.12 and sound.dtype == np.float32


def sound_pieces(data: bytes) -> None:
    """A format, a rate, and pieces of PCM or G.711."""
    format, data = _choice(data, FORMATS)
    rate, data = _choice(data, sorted(RATES_HERTZ))
    reader = pcm.Pieces(format, rate)
    resampler = Resampler(rate, RATE) if rate != RATE else None
    with contextlib.suppress(InvalidRequest):
        for piece in data.split(SEPARATOR):
            sound = reader.decode(piece)
            if resampler is not None:
                with np.errstate(all="ignore"):
                    sound = resampler.resample(sound)
            if len(sound):
                check_samples(sound, "audio")
                assert np.abs(sound).max() <= LOUDEST
                format.encode(sound)


def realtime_sound(data: bytes) -> None:
    """Pieces for a Realtime client's ear, each with its format in front."""
    clock = [100.0]
    feed = Feed(ear_of(RATE), 1920, 0.08, lambda: clock[0])
    feed.start()
    for part in data.split(SEPARATOR):
        wave, piece = _choice(part, WAVES)
        feed.take(piece, wave)
        clock[0] += 0.1
        due = feed.next()
        assert isinstance(due, float) or due.dtype == np.float32


def jwts(data: bytes) -> None:
    """A bearer token where our own secret has signed some."""
    with contextlib.suppress(MeshError):
        name = streams.run(Tokens("issuer", "mesh", SharedSecret(SECRET)).check(text_of(data)))
        assert name.startswith("jwt-")


def key_sets(data: bytes) -> None:
    """An issuer's JWKS."""
    with contextlib.suppress(ValueError):
        read_key_set(data)


def key_files(data: bytes) -> None:
    """A file of API keys."""
    with contextlib.suppress(ValueError):
        _from_file("keys.json", data, read_keys)


def open_gate(data: bytes) -> None:
    """A credential where everybody may call."""
    with contextlib.suppress(MeshError):
        streams.run(OpenGate().caller(text_of(data), "10.0.0.1", "grpc"))


def handles(data: bytes) -> None:
    """A resume handle, and something sealed."""
    text, _, sealed = data.partition(SEPARATOR)
    with contextlib.suppress(UnknownSession):
        handle = Handle(text_of(text))
        with contextlib.suppress(ValueError):
            handle.open(sealed, b"chunk")
            raise AssertionError("a seal was forged")


def traceparents(data: bytes) -> None:
    """A W3C trace context."""
    found = read_traceparent(text_of(data))
    assert found is None or (0 < found.trace_id < 1 << 128 and 0 < found.span_id < 1 << 64)
    logs.bind("session", text_of(data))


def a_record(steps: int = 6) -> Record:
    """A session of so many steps."""
    history = History(2, 3, 1, 20)
    for step in range(steps):
        history.append(step, [step, step], None if step < 1 else [1, 2, 3, 4],
                       lm_pb2.StepControls(say=lm_pb2.Say(text="word")) if step == 2 else None)
    return Record("session", "model", "codec", lm_pb2.Sampling(seed=1), history)


_RECORD = a_record()
FACTS = seal_facts(HANDLE, _RECORD)
CHUNKS = [seal_chunk(HANDLE, _RECORD.history, first, 1.0) for first in (0, 2, 4)]


def journals(data: bytes) -> None:
    """What Redis has of a session: facts, then chunks. `@` and a digit is one that we have sealed ourselves: none of
    ours can be made by chance, and each process has its own.
    """
    ours = [FACTS, *CHUNKS]
    facts, *chunks = (ours[part[1] % len(ours)] if len(part) == 2 and part[:1] == b"@" else part
                      for part in data.split(SEPARATOR))
    with contextlib.suppress(ValueError, ResumeIncompatible):
        found = open_record(HANDLE, facts, chunks)
        assert facts == FACTS and all(chunk in CHUNKS for chunk in chunks)
        assert found.history.first_step + len(list(found.history.kept_steps())) == found.history.steps


def history_chunks(data: bytes) -> None:
    """Chunks of a history that were opened."""
    history = History(2, 3, 1, 20)
    for part in data.split(SEPARATOR):
        try:
            chunk = journal_pb2.Chunk.FromString(part)
        except Exception:  # protobuf's own DecodeError
            continue
        with contextlib.suppress(ValueError):
            history.extend(chunk)
            history.to_proto()
            list(history.kept_steps())


def checkpoint_json(data: bytes) -> None:
    """A checkpoint's config.json."""
    from services.mesh.checkpoint import CheckpointError, _read_json  # torch takes 3 s, and the others need none of it

    try:
        config = _from_file("config.json", data, _read_json)
    except CheckpointError:
        return
    for check in (check_lm, check_mimi, check_generation):
        with contextlib.suppress(ConfigRefused):
            check(config)


def safetensors(data: bytes) -> None:
    """A checkpoint's weights."""
    with contextlib.suppress(ValueError):
        assert len(_from_file("model.safetensors", data, safetensors_digest)) == 32


def _from_file(name: str, data: bytes, read: Callable[[Path], Any]) -> Any:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        return read(path)


PARSERS: Mapping[str, Callable[[bytes], None]] = {
    "JSON of /api/pcm": pcm_json, "queries": queries, "metadata of /api/chat": chat_metadata,
    "credentials in headers": credentials, "JSON of Realtime": realtime_json, "JSON of Live": live_json,
    "Ogg pages": ogg_pages, "Opus packets": opus_packets, "pieces of PCM and G.711": sound_pieces,
    "sound of Realtime": realtime_sound, "JWTs": jwts, "JWKS": key_sets, "key files": key_files,
    "credentials at an open gate": open_gate, "resume handles": handles, "traceparents": traceparents,
    "journals in Redis": journals, "chunks of a history": history_chunks, "checkpoints' JSON": checkpoint_json,
    "safetensors": safetensors,
    "messages of Converse": lambda data: streams.converse(data.split(SEPARATOR)),
    "messages of Replay": lambda data: streams.replay(data.split(SEPARATOR)),
    "messages of tunnels": lambda data: streams.tunnel(data.split(SEPARATOR)),
}
