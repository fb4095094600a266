"""The caller's audio: what is taken, in which pieces it goes on, and how its errors come back."""

from __future__ import annotations

import array
import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from typing import Any

import moshimesh
import numpy as np
import pytest

from tests.client.gateway import Gateway, serving

SAMPLES = np.arange(-2400, 2400, dtype="<i2")  # 0.2 s
TEN_MS = 480  # bytes


async def talk(pcm: Any, **options: Any) -> tuple[Gateway, moshimesh.Summary]:
    """A call, and what the gateway got."""
    gateway = Gateway()
    async with serving(gateway) as target, moshimesh.connect(target) as mesh:
        events = [event async for event in mesh.converse(pcm, **{"pacing": "offline"} | options)]
    assert isinstance(events[-1], moshimesh.Summary)
    return gateway, events[-1]


async def one_by_one(pieces: Sequence[Any]) -> AsyncIterator[Any]:
    for piece in pieces:
        yield piece


RECORDINGS = {
    "bytes": SAMPLES.tobytes(), "bytearray": bytearray(SAMPLES.tobytes()), "memoryview": memoryview(SAMPLES.tobytes()),
    "array.array": array.array("h", SAMPLES.tolist()), "numpy int16": SAMPLES,
    "numpy, every second of twice as many": np.repeat(SAMPLES, 2)[::2],
    "numpy of bytes": np.frombuffer(SAMPLES.tobytes(), dtype=np.uint8),
}


@pytest.mark.parametrize("name", RECORDINGS)
async def test_whatever_has_the_buffer_protocol_is_taken(name: str) -> None:
    whole, _ = await talk(RECORDINGS[name])
    in_pieces, _ = await talk(one_by_one([RECORDINGS[name]]))
    assert b"".join(whole.pieces) == b"".join(in_pieces.pieces) == SAMPLES.tobytes()


async def test_floats_are_taken_as_floats() -> None:
    floats = SAMPLES.astype("<f4") / 32768
    gateway, _ = await talk(floats, encoding="f32")
    assert b"".join(gateway.pieces) == floats.tobytes()


NOT_AUDIO = {
    "NoneType": (None, "None"), "str": ("audio.wav", "str"), "int": (3, "int"), "list": ([SAMPLES.tobytes()], "list"),
    "float64": (SAMPLES / 32768, "float64"), "float32 as s16": (SAMPLES.astype("<f4"), "float32"),
    "stereo": (SAMPLES.reshape(-1, 2), r"mono.*\(2400, 2\)"), "object": (object(), "object"),
    "big endian": (SAMPLES.astype(">i2"), ">i2"),
}


@pytest.mark.parametrize("name", NOT_AUDIO)
async def test_whatever_else_is_refused_by_the_name_of_its_type(name: str) -> None:
    given, message = NOT_AUDIO[name]
    with pytest.raises(TypeError, match=message):
        await talk(given)
    with pytest.raises(TypeError, match=message):
        await talk(one_by_one([bytes(3840), given]))


async def test_a_plain_generator_is_refused_before_the_call_is_made() -> None:
    gateway = Gateway()
    pieces = (bytes(3840) for _ in range(3))
    async with serving(gateway) as target, moshimesh.connect(target) as mesh:
        with pytest.raises(TypeError, match="async iterable of such pieces, got generator"):
            await anext(mesh.converse(pieces))  # type: ignore[arg-type]
    assert gateway.calls == 0


class Unplugged(BaseException):
    """Not an Exception."""


class OnlyAiter:
    """An async iterable that is no iterator."""

    def __init__(self, iterator: object) -> None:
        self._iterator = iterator

    def __aiter__(self) -> Any:
        return self._iterator


@pytest.mark.parametrize("error", [OSError("unplugged"), Unplugged("unplugged"), KeyError("unplugged")])
@pytest.mark.parametrize("after", [0, 1, 20])
async def test_what_the_iterator_raises_reaches_the_caller(error: BaseException, after: int) -> None:
    async def microphone() -> AsyncIterator[bytes]:
        for _ in range(after):
            yield bytes(3840)
        raise error

    for pcm in (microphone(), OnlyAiter(microphone())):
        with pytest.raises(type(error), match="unplugged"):
            await talk(pcm)


async def test_an_iterable_whose_iterator_is_none_says_so() -> None:
    with pytest.raises(TypeError, match="list_iterator"):
        await talk(OnlyAiter(iter([bytes(3840)])))


async def test_an_iterator_that_was_cancelled_does_not_look_like_the_caller_being_cancelled() -> None:
    """Else the caller's task would vanish from its TaskGroup without a word."""
    async def microphone() -> AsyncIterator[bytes]:
        yield bytes(3840)
        device = asyncio.get_running_loop().create_future()
        device.cancel()
        await device

    task = asyncio.create_task(talk(microphone()))
    await asyncio.wait((task,))
    assert not task.cancelled()
    with pytest.raises(RuntimeError, match="cancelled"):
        task.result()


async def test_a_caller_who_is_cancelled_is_cancelled() -> None:
    began = asyncio.Event()

    async def microphone() -> AsyncIterator[bytes]:
        began.set()
        await asyncio.sleep(60)
        yield bytes(3840)

    task = asyncio.create_task(talk(microphone()))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def cut(size: int) -> Iterator[bytes]:
    data = SAMPLES.tobytes()
    return (data[begin:begin + size] for begin in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 3, 479, 481, 3839, 100_000])
async def test_pieces_that_are_cut_in_the_middle_of_a_sample(size: int) -> None:
    gateway, summary = await talk(one_by_one(list(cut(size))))
    assert b"".join(gateway.pieces) == SAMPLES.tobytes()
    assert all(len(piece) % 2 == 0 for piece in gateway.pieces)
    assert all(len(piece) >= TEN_MS for piece in gateway.pieces[:-1])
    assert summary.bytes_dropped == 0


@pytest.mark.parametrize("encoding", ["s16", "f32"])
async def test_an_unfinished_sample_at_the_end_costs_neither_answers_nor_summary(encoding: str) -> None:
    width = {"s16": 2, "f32": 4}[encoding]
    size = 9601 * width - 1
    for pcm in (bytes(size), one_by_one([bytes(9600), bytes(size - 9600)])):
        gateway, summary = await talk(pcm, encoding=encoding)
        assert len(b"".join(gateway.pieces)) == 9600 * width
        assert summary.bytes_dropped == width - 1


async def test_empty_pieces_are_nothing_and_long_ones_are_cut() -> None:
    gateway, summary = await talk(one_by_one([b"", bytes(100_000), b"", b""]))
    assert [len(piece) for piece in gateway.pieces] == [48_000, 48_000, 4000]
    assert summary.frames_in == 27


async def test_no_audio_at_all_is_a_conversation_without_frames() -> None:
    for pcm in (b"", one_by_one([]), one_by_one([b""])):
        gateway, summary = await talk(pcm)
        assert (gateway.pieces, summary.frames_in) == ([], 0)


async def test_a_live_recording_comes_at_the_speed_of_speech_once_the_call_is_open() -> None:
    gateway = Gateway(opens_after_s=0.2)
    async with serving(gateway) as target, moshimesh.connect(target) as mesh:
        async for _ in mesh.converse(bytes(5 * 3840), pacing="live"):
            pass
    assert [len(piece) for piece in gateway.pieces] == [3840] * 5
    assert gateway.came[0] >= gateway.opened
    assert gateway.came[-1] - gateway.came[0] > 0.25  # 4 pieces of 80 ms; the first may have come late


async def test_a_live_recording_is_not_hurried_along_after_a_pause() -> None:
    """The mesh would skip what comes faster than speech."""
    from moshimesh.source import PcmFormat, Source

    now = asyncio.get_running_loop().time
    came = []
    async for _ in Source(bytes(8 * 3840), PcmFormat.of("s16", 24_000), live=True).pieces():
        came.append(now())
        if len(came) == 3:
            await asyncio.sleep(0.5)
    assert came[-1] - came[3] > 0.3  # 4 pieces of 80 ms


@pytest.mark.parametrize(("options", "message"), [
    ({"encoding": "mp3"}, "'s16' or 'f32', got 'mp3'"), ({"pacing": "fast"}, "'live' or 'offline', got 'fast'"),
    ({"sample_rate_hertz": 0}, "at least 1, got 0")])
async def test_arguments_that_can_not_be_sent(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await talk(b"", **options)


def test_an_object_with_only_aiter_is_an_async_iterable() -> None:
    assert isinstance(OnlyAiter(None), AsyncIterable)
