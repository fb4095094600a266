"""A rolling upgrade: gateways of two versions share Redis, and resume each other's sessions where they can.

version_1.json is what the writer of format version 1 left in Redis: 12 steps in 3 chunks, bytes as they were. It never
changes; neither does version_2.json, the same session with controls at some of its steps. Later versions are played by
adding to the first what it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from moshimesh.journal.v1 import journal_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.sessions.history import History
from services.gateway.sessions.records import FORMAT_VERSION, PLAIN_VERSION, Record, keys_of, seal_chunk, seal_facts
from services.gateway.sessions.sealing import Handle
from services.mesh.errors import ResumeIncompatible
from tests.gateway.redis_server import RedisServer
from tests.gateway.sessions.gateways import Gateway, resume, written

VERSION_1, VERSION_2 = (json.loads(Path(__file__).with_name(f"version_{number}.json").read_text()) for number in (1, 2))
HANDLE = Handle(VERSION_1["handle"])
SAMPLING = lm_pb2.Sampling(text_temperature=0.5, text_top_k=25, audio_temperature=0.25, audio_top_k=250, seed=99)
CONTROLS = {3: lm_pb2.StepControls(sampling=lm_pb2.Sampling(text_top_k=1, repetition_penalty=1.5)),
            5: lm_pb2.StepControls(forced=lm_pb2.ForcedTokens(text_token=3, codes=[1, 2, 3], frames=4)),
            10: lm_pb2.StepControls(say=lm_pb2.Say(text="good evening"))}
ADDED = b"\x9a\x3e\x05later"  # field 995, a string: what a later version has added


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


def the_history(controls: Mapping[int, lm_pb2.StepControls] = MappingProxyType({})) -> History:
    """What was said: numbers that tell where they belong, and four frames skipped before step 7."""
    history = History(2, 3, 2, 100)
    for step in range(12):
        history.append(step + 4 * (step >= 7), [step, 2047 - step],
                       [31_999 - step, step, 2 * step, 3 * step] if step >= 2 else None, controls.get(step))
    return history


Change = Callable[[bytes], bytes]


def left_in(server: RedisServer, facts: Change = bytes, chunk: Change = bytes) -> None:
    """Put version 1's session into Redis; `facts` and `chunk` change the messages that are sealed."""
    def changed(sealed: str, kind: bytes, change: Change) -> bytes:
        return HANDLE.seal(change(HANDLE.open(bytes.fromhex(sealed), kind)), kind)

    record, journal = keys_of(HANDLE.name)
    fields = VERSION_1["record"]
    server.client.hset(record, mapping=fields | {"facts": changed(fields["facts"], b"facts", facts)})
    server.client.rpush(journal, *(changed(sealed, b"chunk", chunk) for sealed in VERSION_1["journal"]))


def with_version(version: int) -> Change:
    """Field 1 is the version in all messages of all versions."""
    return lambda message: message + b"\x08" + bytes([version])


async def test_what_version_1_wrote_is_resumed(server: RedisServer) -> None:
    """The bytes as they were: not sealed again."""
    record, journal = keys_of(HANDLE.name)
    server.client.hset(record, mapping=VERSION_1["record"] | {"facts": bytes.fromhex(VERSION_1["record"]["facts"])})
    server.client.rpush(journal, *map(bytes.fromhex, VERSION_1["journal"]))
    async with Gateway(server.url, "a new gateway") as sessions:
        session = await resume(sessions, HANDLE.text)
        assert (session.id, session.model_id, session.codec_id, session.sampling) == (
            "the session", "the model", "the codec", SAMPLING)
        assert session.history.to_proto() == the_history().to_proto()
        assert session.history.next_sequence == 16
        assert 30.0 <= session.age_s < 40.0
        await written(server, session)
        assert not session.lost


async def test_what_version_2_wrote_is_resumed(server: RedisServer) -> None:
    """Controls of steps, in the chunks that need them."""
    record, journal = keys_of(HANDLE.name)
    server.client.hset(record, mapping=VERSION_2["record"] | {"facts": bytes.fromhex(VERSION_2["record"]["facts"])})
    server.client.rpush(journal, *map(bytes.fromhex, VERSION_2["journal"]))
    async with Gateway(server.url, "a new gateway") as sessions:
        session = await resume(sessions, HANDLE.text)
        assert session.history.to_proto() == the_history(CONTROLS).to_proto()
        assert session.history.controls.by_step() == CONTROLS


def test_only_what_has_controls_is_of_version_2() -> None:
    """Else a gateway of version 1 could not resume it."""
    history = the_history({3: CONTROLS[3]})
    record = Record("the session", "the model", "the codec", SAMPLING, history)
    facts = journal_pb2.Facts.FromString(HANDLE.open(seal_facts(HANDLE, record), b"facts"))
    plain, directed, after = (journal_pb2.Chunk.FromString(HANDLE.open(sealed, b"chunk")) for sealed in (
        seal_chunk(HANDLE, the_history(), 0, 1.0), seal_chunk(HANDLE, history, 0, 1.0),
        seal_chunk(HANDLE, history, 8, 1.0)))
    assert (facts.format_version, plain.format_version, directed.format_version) == (1, 1, 2)
    assert after.format_version == 2, "the settings are still in force, and its reader may not have the chunk before"


async def test_what_a_later_version_has_added_is_skipped(server: RedisServer) -> None:
    """And not written again: what is in Redis after that is of this gateway's version, whole."""
    left_in(server, facts=lambda message: message + ADDED, chunk=lambda message: ADDED + message)
    async with Gateway(server.url, "an old gateway") as sessions:
        session = await resume(sessions, HANDLE.text)
        assert session.history.to_proto() == the_history().to_proto()
        session.history.append(16, [1, 2], [3, 4, 5, 6])
        await written(server, session)
        record, journal = keys_of(HANDLE.name)
        facts = journal_pb2.Facts.FromString(HANDLE.open(server.client.hget(record, "facts"), b"facts"))
        chunks = [journal_pb2.Chunk.FromString(HANDLE.open(sealed, b"chunk"))
                  for sealed in server.client.lrange(journal, 0, -1)]
        for message in (facts, *chunks):
            assert not UnknownFieldSet(message) and message.format_version == PLAIN_VERSION
        again = await resume(sessions, HANDLE.text)
        assert again.history.to_proto() == session.history.to_proto()


async def test_fields_that_an_earlier_version_did_not_have_are_optional(server: RedisServer) -> None:
    """All that came after the shape of a session: its sampling, its age, its skipped frames."""
    def bare(message: bytes) -> bytes:
        chunk = journal_pb2.Chunk.FromString(message)
        chunk.ClearField("age_ms")
        return chunk.SerializeToString()

    left_in(server, chunk=bare)
    async with Gateway(server.url) as sessions:
        session = await resume(sessions, HANDLE.text)
        assert session.age_s < 10.0
        assert session.history.to_proto() == the_history().to_proto()


@pytest.mark.parametrize("left", [
    {"facts": with_version(FORMAT_VERSION + 1)}, {"chunk": with_version(FORMAT_VERSION + 1)},
    {"facts": with_version(0)},
    {"facts": lambda message: b"\xff another format"}, {"chunk": lambda message: b"\xff another format"}],
    ids=["facts of a later version", "chunks of a later version", "no version", "other facts",
         "other chunks"])
async def test_what_is_not_understood_is_refused_and_left_alone(server: RedisServer, left: dict[str, Change]) -> None:
    left_in(server, **left)
    record, journal = keys_of(HANDLE.name)
    before = (server.client.hgetall(record), server.client.lrange(journal, 0, -1))
    async with Gateway(server.url, "an old gateway") as sessions:
        with pytest.raises(ResumeIncompatible) as caught:
            await resume(sessions, HANDLE.text)
        assert caught.value.reason == "RESUME_INCOMPATIBLE" and caught.value.retry_after_s
    assert (server.client.hgetall(record), server.client.lrange(journal, 0, -1)) == before


async def test_the_live_call_goes_on_when_another_version_can_not_resume_it(server: RedisServer) -> None:
    """The owner, of a later version, writes on as if nobody had asked."""
    async with Gateway(server.url, "a new gateway") as new, Gateway(server.url, "an old gateway") as old:
        left_in(server)
        session = await resume(new, HANDLE.text)
        await written(server, session)
        _, journal = keys_of(HANDLE.name)
        (sealed,) = server.client.lrange(journal, 0, -1)
        later = with_version(FORMAT_VERSION + 1)(HANDLE.open(sealed, b"chunk"))
        server.client.lset(journal, 0, HANDLE.seal(later, b"chunk"))
        with pytest.raises(ResumeIncompatible):
            await resume(old, HANDLE.text)
        await written(server, session)
        assert not session.lost
