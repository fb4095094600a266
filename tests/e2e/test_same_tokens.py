"""The sacred one: the mesh says what the reference loop over moshi's own classes says, whatever else is served."""

from __future__ import annotations

import asyncio

import numpy as np
import numpy.typing as npt
import pytest

from harness.local_mesh import LocalMesh
from tests.e2e.calls import GREEDY, SAMPLED, Call, call, slots_are_free
from tests.e2e.reference import Reference, reference_loop

Pcm = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def reference(checkpoint: str, speech: Pcm) -> Reference:
    return reference_loop(checkpoint, speech)


def assert_same(answer: Call, reference: Reference) -> None:
    assert answer.tokens.shape == reference.tokens.shape
    assert (answer.tokens == reference.tokens).all()
    assert np.abs(answer.pcm - reference.pcm).max() < 1e-4


async def test_one_caller(mesh_target: str, speech: Pcm, reference: Reference) -> None:
    answer = await call(mesh_target, speech, **GREEDY)
    assert_same(answer, reference)
    assert answer.summary.frames_in == answer.summary.frames_out == len(reference.tokens)
    assert len(np.unique(reference.tokens[:, 1:])) > 20, "a constant answer would prove nothing"


@pytest.mark.parametrize("piece_ms", [10, 37, 1000])
async def test_any_piece_size(mesh_target: str, speech: Pcm, reference: Reference, piece_ms: int) -> None:
    assert_same(await call(mesh_target, speech, piece_ms, **GREEDY), reference)


async def test_eight_callers_who_start_at_different_moments(
        mesh_target: str, checkpoint: str, speech: Pcm, reference: Reference) -> None:
    async def late(index: int) -> Call:
        await asyncio.sleep(0.15 * index)
        return await call(mesh_target, speech if index % 2 == 0 else other, **GREEDY)

    other = speech[::-1].copy()
    other_reference = reference_loop(checkpoint, other)
    answers = await asyncio.gather(*(late(index) for index in range(8)))
    for index, answer in enumerate(answers):
        assert_same(answer, reference if index % 2 == 0 else other_reference)
    assert max(hop.batch_size for frame in answers[0].speech for hop in frame.hops) > 1, "they never shared a step"


async def test_a_slot_that_is_leased_again(mesh: LocalMesh, speech: Pcm, reference: Reference) -> None:
    await call(mesh.target, speech[::-1].copy(), **SAMPLED)
    assert await slots_are_free(mesh)  # the lowest row is free again, and the next call gets it
    assert_same(await call(mesh.target, speech, **GREEDY), reference)


async def test_a_neighbour_changes_nothing(mesh_target: str, speech: Pcm) -> None:
    alone = await call(mesh_target, speech, **SAMPLED)

    async def neighbour(index: int) -> Call:
        await asyncio.sleep(0.05 * index)
        shifted = np.roll(speech, 7919 * index)
        return await call(mesh_target, shifted, text_temperature=0.1 * index, audio_temperature=1.0, seed=index)

    async def among() -> Call:
        await asyncio.sleep(0.12)  # not the first row
        return await call(mesh_target, speech, **SAMPLED)

    *_, crowded = await asyncio.gather(*(neighbour(index) for index in range(1, 8)), among())
    assert (crowded.tokens == alone.tokens).all()
    assert np.abs(crowded.pcm - alone.pcm).max() < 1e-4
    other_seed = await call(mesh_target, speech, **(SAMPLED | {"seed": 8}))
    assert (other_seed.tokens != alone.tokens).any(), "the seed must matter"


async def test_a_live_caller_who_is_too_fast_is_told_what_was_skipped(mesh_target: str, speech: Pcm) -> None:
    """A live call keeps time with its caller, here one who speaks as fast as the wire carries it."""
    answer = await call(mesh_target, np.tile(speech, 3), pacing="live", **GREEDY)
    frames = -(-3 * len(speech) // answer.ready.samples_per_frame)
    summary = answer.summary
    assert summary.frames_skipped > 0
    assert summary.frames_in + summary.frames_skipped == frames
    assert summary.frames_out == summary.frames_in
    assert answer.speech[-1].frames_skipped == summary.frames_skipped
    assert answer.speech[-1].sequence == frames + answer.ready.delay_frames - 1


async def test_a_tenant_who_shouted_leaves_nothing_behind(mesh: LocalMesh, speech: Pcm, reference: Reference) -> None:
    """The loudest audio that is accepted, then the next call in the same row."""
    await call(mesh.target, np.full(48_000, 100.0, np.float32), **GREEDY)
    assert await slots_are_free(mesh)
    assert_same(await call(mesh.target, speech, **GREEDY), reference)
