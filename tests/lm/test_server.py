"""Sessions that move between two replicas of the language model, over real gRPC."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import torch
from moshi.models.lm import LMModel
from moshimesh.audio.v1 import audio_pb2
from moshimesh.lm.v1 import lm_pb2, lm_pb2_grpc

from services.codec.engine import build_engines
from services.gateway.peers.tunnel import Method
from services.gateway.sessions.history import History
from services.lm.delays import UNGENERATED
from services.lm.engine import LmEngine
from services.lm.sampling import Sampling
from services.lm.server import DESCRIPTOR, LmServer
from services.mesh.batching import USUAL, BatchingOptions
from services.mesh.checkpoint import load_lm, load_mimi, resolve
from services.mesh.errors import REASON_KEY, MeshError, from_rpc_error
from services.mesh.telemetry import FrameTracer
from services.mesh.timings import MOST_HOPS
from tests.lm.small_lm import Ints, random_codes, random_lm
from tests.served import Served

Pcm = npt.NDArray[np.float32]
GREEDY = lm_pb2.Sampling(text_temperature=0, audio_temperature=0, seed=1)
SAMPLED = lm_pb2.Sampling(text_temperature=0.7, audio_temperature=0.8, seed=7)
SLOTS, CONTEXT, AFTER = 2, 100, 20
STEP = Method(f"/{DESCRIPTOR.full_name}/Step", lm_pb2.StepRequest, lm_pb2.StepResponse)


class Tokenizer:
    """Many of its tokens are bytes of a character of two."""

    def id_to_piece(self, token: int) -> str:
        return ("<0xC3>", "<0xAF>", f"▁{token}")[token % 3]

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text if character != " "]


class Replica(Served):
    """One replica."""

    def __init__(self, engine: LmEngine, options: BatchingOptions = USUAL) -> None:
        super().__init__("lm", LmServer(engine, Tokenizer(), Sampling(), "small", "its codec", FrameTracer(), 5.0,
                                        options, text_prompt_characters=120), lm_pb2_grpc.LmServiceStub)

    async def info(self) -> lm_pb2.GetInfoResponse:
        return await self.stub.GetInfo(lm_pb2.GetInfoRequest())

    async def free(self, slots: int) -> bool:
        for _ in range(100):
            if (await self.info()).slots_free == slots:
                return True
            await asyncio.sleep(0.01)
        return False


class Session:
    """One call, direct or through the tunnel."""

    def __init__(self, replica: Replica, sampling: lm_pb2.Sampling, history: lm_pb2.StepHistory | None = None,
                 tunnelled: bool = False) -> None:
        config = lm_pb2.StepConfig(session_id="session", sampling=sampling, history=history)
        self.call: Any = replica.tunnel.call(STEP) if tunnelled else replica.stub.Step()
        self._tunnelled = tunnelled
        self._responses = aiter(self.call)
        self._config = lm_pb2.StepRequest(config=config)
        self.text: list[str] = []

    async def open(self) -> lm_pb2.StepReady:
        await self.send(self._config)
        return (await self.answer()).ready

    async def step(self, codes: Iterable[int], controls: lm_pb2.StepControls | None = None) -> list[int]:
        await self.send(lm_pb2.StepRequest(step=lm_pb2.StepInput(
            frame=audio_pb2.CodeFrame(codes=codes), controls=controls)))
        step = (await self.answer()).step
        self.text.append(step.text)
        return [step.text_token, *step.frame.codes] if step.HasField("text_token") else [UNGENERATED] * 9

    async def steps(self, codes: Ints, controls: Mapping[int, lm_pb2.StepControls] = MappingProxyType({})) -> Ints:
        return np.array([await self.step(frame, controls.get(step))
                         for step, frame in enumerate(codes.tolist())], np.int64).reshape(-1, 9)

    async def answer(self) -> lm_pb2.StepResponse:
        return await anext(self._responses)

    async def send(self, request: lm_pb2.StepRequest) -> None:
        if self._tunnelled:
            self.call.send(request)
        else:
            await self.call.write(request)


@pytest.fixture(scope="module")
def lm() -> LMModel:
    return random_lm(num_layers=2, context=CONTEXT)


@pytest.fixture(scope="module")
async def replicas(lm: LMModel) -> AsyncIterator[tuple[Replica, Replica]]:
    async with Replica(LmEngine(lm, SLOTS)) as one, Replica(LmEngine(lm, SLOTS)) as two:
        yield one, two


def history_of(codes: Ints, tokens: Ints, context_frames: int = CONTEXT) -> lm_pb2.StepHistory:
    """What the gateway makes of a session's past."""
    history = History(8, 8, 1, context_frames)
    for sequence, (heard, said) in enumerate(zip(codes.tolist(), tokens.tolist(), strict=True)):
        history.append(sequence, heard, None if UNGENERATED in said else said)
    return history.to_proto()


@pytest.mark.parametrize("tunnelled", [False, True], ids=["direct", "tunnelled"])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("before", [0, 1, 2, 40, CONTEXT - AFTER])
async def test_a_session_goes_on_at_another_replica_as_if_it_had_never_moved(
        replicas: tuple[Replica, Replica], before: int, sampling: lm_pb2.Sampling, tunnelled: bool) -> None:
    one, two = replicas
    codes, other_codes = random_codes(before + AFTER, 1), random_codes(200, 2)
    uncut = Session(one, sampling, tunnelled=tunnelled)
    ready = await uncut.open()
    assert (ready.context_frames, ready.delay_frames) == (CONTEXT, 1)
    tokens = await uncut.steps(codes)
    uncut.call.cancel()
    undisturbed = Session(one, GREEDY)
    await undisturbed.open()
    expected = await undisturbed.steps(other_codes[:30])
    undisturbed.call.cancel()

    neighbour = Session(two, GREEDY)
    await neighbour.open()
    stepping = asyncio.create_task(neighbour.steps(other_codes[:30]))
    moved = Session(two, ready.sampling, history_of(codes[:before], tokens[:before]), tunnelled)
    assert await moved.open() == ready
    assert np.array_equal(await moved.steps(codes[before:]), tokens[before:])
    assert moved.text == uncut.text[before:]
    assert np.array_equal(await stepping, expected)
    moved.call.cancel()
    neighbour.call.cancel()
    assert await one.free(SLOTS)
    assert await two.free(SLOTS)


async def test_a_session_longer_than_the_context_goes_on_nearly_the_same(checkpoint: str, speech: Pcm) -> None:
    """A trained model, since a random one says something else at the slightest difference."""
    info = resolve(checkpoint)
    encoder, _ = build_engines(load_mimi(info), 1)
    frames = speech[:len(speech) // 1920 * 1920].reshape(-1, 1920)
    codes = np.concatenate([encoder.step([0], frame[None]) for frame in np.concatenate([frames] * 3)])
    async with Replica(LmEngine(load_lm(info, dtype=torch.float32), SLOTS)) as replica:
        uncut = Session(replica, GREEDY)
        ready = await uncut.open()
        tokens = await uncut.steps(codes)
        before = len(codes) - 50
        past = history_of(codes[:before], tokens[:before], ready.context_frames)
        assert past.first_step == before - ready.context_frames - ready.delay_frames > 0
        moved = Session(replica, GREEDY, past)
        await moved.open()
        assert np.mean(await moved.steps(codes[before:]) == tokens[before:]) > 0.95


def history(steps: int, first_step: int = 0, answered: int | None = None, code: int = 5, text: int = 5,
            own: int = 5) -> lm_pb2.StepHistory:
    answered = steps - (first_step == 0) if answered is None else answered
    return lm_pb2.StepHistory(first_step=first_step, user_codes=[code] * 8 * steps,
                              tokens=[text, *[own] * 8] * answered)


@pytest.mark.parametrize(("bad", "field"), [
    (lm_pb2.StepHistory(user_codes=[1] * 15, tokens=[1] * 9), "user_codes"),
    (history(CONTEXT + 2), "user_codes"),
    (history(0, first_step=5), "user_codes"),
    (history(2, first_step=5), "user_codes"),  # too few to know any input
    (history(10, answered=10), "tokens"),
    (history(10, answered=8), "tokens"),
    (history(10, first_step=5, answered=9), "tokens"),
    (history(0, answered=1), "tokens"),
    (lm_pb2.StepHistory(user_codes=[1] * 16, tokens=[1] * 8), "tokens"),
    (history(10, code=2048), "user_codes"),
    (history(10, code=2**32 - 1), "user_codes"),
    (history(10, own=2048), "tokens"),
    (history(10, text=512), "tokens"),
    (history(10, first_step=2**24), "first_step"),
    (history(10, first_step=2**64 - 1), "first_step"),
], ids=lambda value: None if isinstance(value, str) else f"{len(value.user_codes)}-{len(value.tokens)}")
@pytest.mark.parametrize("tunnelled", [False, True], ids=["direct", "tunnelled"])
async def test_a_bad_history_is_refused(replicas: tuple[Replica, Replica], bad: lm_pb2.StepHistory, field: str,
                                        tunnelled: bool) -> None:
    _, two = replicas
    with pytest.raises((grpc.aio.AioRpcError, MeshError)) as caught:
        await Session(two, GREEDY, bad, tunnelled).open()
    if isinstance(caught.value, grpc.aio.AioRpcError):
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert (REASON_KEY, "BAD_HISTORY") in tuple(caught.value.trailing_metadata())
    else:
        assert (caught.value.reason, caught.value.metadata["field"]) == ("BAD_HISTORY", f"config.history.{field}")
    assert (await two.info()).slots_free == SLOTS


@pytest.mark.parametrize("good", [
    history(0), history(1), history(CONTEXT + 1), history(3, first_step=5), history(10, code=2047, own=2047, text=511),
    history(10, first_step=2**24 - 10)], ids=["empty", "one", "longest", "shortest end", "largest", "latest"])
async def test_the_ends_of_what_is_accepted_are_accepted(replicas: tuple[Replica, Replica],
                                                         good: lm_pb2.StepHistory) -> None:
    _, two = replicas
    session = Session(two, GREEDY, good)
    await session.open()
    assert len(await session.steps(random_codes(3, 1))) == 3
    session.call.cancel()
    assert await two.free(SLOTS)


async def test_who_leaves_while_the_row_is_rebuilt_gives_it_back(lm: LMModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LmEngine(lm, SLOTS)
    left = threading.Event()
    prefill = engine.prefill

    def waiting(*arguments: Any) -> Iterator[None]:
        for _ in prefill(*arguments):
            left.wait(5)
            yield

    monkeypatch.setattr(engine, "prefill", waiting)
    async with Replica(engine) as replica:
        leaving = Session(replica, GREEDY, history(CONTEXT + 1))
        opening = asyncio.create_task(leaving.open())
        assert await replica.free(SLOTS - 1)
        leaving.call.cancel()
        with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
            await opening
        left.set()
        assert await replica.free(SLOTS)


def sampling(**changes: float) -> lm_pb2.StepControls:
    return lm_pb2.StepControls(sampling=lm_pb2.Sampling(**changes))


def forced(**changes: Any) -> lm_pb2.StepControls:
    return lm_pb2.StepControls(forced=lm_pb2.ForcedTokens(**changes))


def say(text: str) -> lm_pb2.StepControls:
    return lm_pb2.StepControls(say=lm_pb2.Say(text=text))


@pytest.mark.parametrize("tunnelled", [False, True], ids=["direct", "tunnelled"])
@pytest.mark.parametrize("before", [0, 1, 5, 6, 9, 14, 21, 40])
async def test_controls_take_effect_at_their_step_and_again_at_another_replica(
        replicas: tuple[Replica, Replica], before: int, tunnelled: bool) -> None:
    one, two = replicas
    codes = random_codes(60, 1)
    controls = {0: say("ab"), 5: sampling(text_temperature=0.5, repetition_penalty=1.3), 8: say("dg jm"),
                20: forced(text_token=3, codes=range(8), frames=4), 22: sampling(audio_temperature=0)}
    uncut = Session(one, SAMPLED, tunnelled=tunnelled)
    ready = await uncut.open()
    assert list(ready.silent_text_tokens) == [3, 0]
    tokens = await uncut.steps(codes, controls)
    uncut.call.cancel()
    assert [token for token in tokens[9:20, 0].tolist() if token not in (0, 3)][:4] == [100, 103, 106, 109]
    assert np.array_equal(tokens[21:25], np.tile([3, *range(8)], (4, 1)))

    past = history_of(codes[:before], tokens[:before])
    past.controls.extend(lm_pb2.StepControlsAt(step=step, controls=control)
                         for step, control in controls.items() if step < before)
    moved = Session(two, ready.sampling, past, tunnelled)
    in_force = (await moved.open()).sampling
    assert (in_force.repetition_penalty, in_force.audio_temperature) == (
        pytest.approx(1.3 if before > 5 else 1), pytest.approx(0 if before > 22 else 0.8))
    later = {step - before: control for step, control in controls.items()}
    assert np.array_equal(await moved.steps(codes[before:], later), tokens[before:])
    moved.call.cancel()
    assert await one.free(SLOTS)
    assert await two.free(SLOTS)


@pytest.mark.parametrize("tunnelled", [False, True], ids=["direct", "tunnelled"])
@pytest.mark.parametrize(("bad", "reason", "field"), [
    (sampling(text_temperature=float("nan")), "BAD_SAMPLING", "sampling"),
    (sampling(padding_bonus=float("inf")), "BAD_SAMPLING", "sampling"),
    (sampling(repetition_penalty=0), "BAD_SAMPLING", "sampling"),
    (sampling(repetition_penalty_context=129), "BAD_SAMPLING", "sampling"),
    (sampling(seed=9), "BAD_SAMPLING", "sampling.seed"),
    (forced(text_token=512), "BAD_CONTROL", "forced.text_token"),
    (forced(codes=[1] * 7), "BAD_CONTROL", "forced.codes"),
    (forced(codes=[2048] * 8), "BAD_CONTROL", "forced.codes"),
    (forced(frames=1001), "BAD_CONTROL", "forced.frames"),
    (say("x" * 1001), "BAD_CONTROL", "say.text"),
    (say(""), "BAD_CONTROL", "say.text"),
], ids=str)
async def test_bad_controls_are_refused(
        replicas: tuple[Replica, Replica], bad: lm_pb2.StepControls, reason: str, field: str, tunnelled: bool) -> None:
    _, two = replicas
    past = history(10)
    past.controls.add(step=3, controls=bad)
    for session, opened, where in (
            (Session(two, GREEDY, None, tunnelled), True, "step.controls"),
            (Session(two, GREEDY, past, tunnelled), False, "config.history.controls[0].controls")):
        with pytest.raises((grpc.aio.AioRpcError, MeshError)) as caught:
            if await session.open() and opened:
                frame = audio_pb2.CodeFrame(codes=[0] * 8)
                await session.send(lm_pb2.StepRequest(step=lm_pb2.StepInput(frame=frame, controls=bad)))
                await session.answer()
        error = from_rpc_error(caught.value, "lm") if isinstance(
            caught.value, grpc.aio.AioRpcError) else caught.value
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
        assert error.metadata["field"] == f"{where}.{field}"
    assert await two.free(SLOTS)


@pytest.mark.parametrize("tunnelled", [False, True], ids=["direct", "tunnelled"])
@pytest.mark.parametrize(("context", "field"), [
    (audio_pb2.FrameContext(hops=[audio_pb2.HopTiming()] * (MOST_HOPS + 1)), "hops"),
    (audio_pb2.FrameContext(hops=[audio_pb2.HopTiming()] * 100_000), "hops"),
    (audio_pb2.FrameContext(traceparent="0" * 129), "traceparent"), (audio_pb2.FrameContext(), "")],
    ids=["hops", "many hops", "traceparent", "fine"])
async def test_what_a_frame_carries_is_bounded(replicas: tuple[Replica, Replica], context: audio_pb2.FrameContext,
                                               field: str, tunnelled: bool) -> None:
    _, two = replicas
    session = Session(two, GREEDY, None, tunnelled)
    await session.open()
    frame = audio_pb2.CodeFrame(codes=[0] * 8, context=context)
    await session.send(lm_pb2.StepRequest(step=lm_pb2.StepInput(frame=frame)))
    if field:
        with pytest.raises((grpc.aio.AioRpcError, MeshError)) as caught:
            await session.answer()
        error = from_rpc_error(caught.value, "lm") if isinstance(
            caught.value, grpc.aio.AioRpcError) else caught.value
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_CONTEXT")
        assert error.metadata["field"] == f"step.frame.context.{field}"
    else:
        await session.answer()
        session.call.cancel()
    assert await two.free(SLOTS)


@pytest.mark.parametrize("tunnelled", [False, True], ids=["direct", "tunnelled"])
async def test_a_session_that_sends_no_frame_loses_its_slot(lm: LMModel, tunnelled: bool) -> None:
    async with Replica(LmEngine(lm, SLOTS), BatchingOptions(idle_s=0.3)) as replica:
        session = Session(replica, GREEDY, None, tunnelled)
        await session.open()
        assert len(await session.steps(random_codes(5, 1))) == 5
        with pytest.raises((grpc.aio.AioRpcError, MeshError)) as caught:
            await session.answer()
        error = from_rpc_error(caught.value, "lm") if isinstance(
            caught.value, grpc.aio.AioRpcError) else caught.value
        assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "IDLE_CALLER")
        assert await replica.free(SLOTS)


async def test_it_tells_its_precision_no_floor_of_a_cpu_and_what_it_takes(replicas: tuple[Replica, Replica]) -> None:
    info = await replicas[0].info()
    assert (info.precision, info.kv_precision, info.floor_ms) == ("fp32", "fp32", 0)
    assert info.text_prompt_characters == 120


async def test_the_service_names_its_model_and_the_codec_of_that(replicas: tuple[Replica, Replica]) -> None:
    one, _ = replicas
    session = Session(one, GREEDY)
    for said in (await one.info(), await session.open()):
        assert (said.model_id, said.codec_id) == ("small", "its codec")
    session.call.cancel()
    assert await one.free(SLOTS)


async def test_a_draining_replica_says_so_and_its_sessions_go_on(lm: LMModel) -> None:
    async with Replica(LmEngine(lm, SLOTS)) as replica:
        session = Session(replica, GREEDY)
        await session.open()
        assert not (await replica.info()).draining
        replica.service.drain()
        info = await replica.info()
        assert (info.draining, info.slots_free, info.slots_total) == (True, 0, SLOTS)
        assert len(await session.steps(random_codes(5, 1))) == 5
        with pytest.raises(grpc.aio.AioRpcError, match="stopping"):
            await Session(replica, GREEDY).open()
