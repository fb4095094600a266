"""Every caller's codes and PCM through the batched engines equal those of a Mimi of their own."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from moshi.models.compression import MimiModel

from scripts.random_checkpoint import MIMI_CONFIG, random_mimi, speech_like
from services.codec import packed, primer
from services.codec.attention import attend_gathered, attend_row_by_row
from services.codec.codes import MISSING
from services.codec.engine import MOST_PRIMING_FRAMES, CodecFacts, DecodeEngine, EncodeEngine, build_engines
from services.codec.runner import MOST_CPU_ROWS, row_buckets
from services.mesh.cuda_graphs import Replay
from services.mesh.finite import NotFinite

SLOTS, CALLS, FRAMES = 8, 9, 24
LONG_FRAMES = 140  # past the attention's context of 250 steps, 125 frames

Array = npt.NDArray[Any]


@dataclass
class Half:
    """One engine, what each call feeds it [FRAMES, ...], and what the call must get back [FRAMES, ...]."""

    engine: EncodeEngine | DecodeEngine
    inputs: list[Array]
    expected: list[Array]

    def play(self, ticks: Iterable[dict[int, int]]) -> None:
        """Each tick maps the rows that have a frame to their calls; a call's first frame opens its row."""
        position: dict[int, int] = {}
        for tick in ticks:
            for row, call in tick.items():
                if call not in position:
                    self.engine.open(row)
            frames = np.stack([self.inputs[call][position.get(call, 0)] for call in tick.values()])
            answers = self.engine.step(list(tick), frames)
            for call, answer in zip(tick.values(), answers, strict=True):
                same(answer, self.expected[call][position.get(call, 0)])
                position[call] = position.get(call, 0) + 1


def same(answer: Array, expected: Array) -> None:
    assert answer.dtype == expected.dtype
    if expected.dtype == np.int64:
        np.testing.assert_array_equal(answer, expected)
    else:
        np.testing.assert_allclose(answer, expected, atol=1e-5)


def encode_alone(mimi: MimiModel, pcm: Array) -> Array:
    """moshi's own loop over frames, float32 [frames, samples] to int64 [frames, codebooks]."""
    with torch.no_grad(), mimi.streaming(1):
        return np.stack([mimi.encode(torch.from_numpy(frame)[None, None])[0, :, 0].numpy() for frame in pcm])


def decode_alone(mimi: MimiModel, codes: Array) -> Array:
    """moshi's own loop over frames, int64 [frames, codebooks] to float32 [frames, samples]."""
    with torch.no_grad(), mimi.streaming(1):
        return np.stack([mimi.decode(torch.from_numpy(frame)[None, :, None])[0, 0].numpy() for frame in codes])


@pytest.fixture(scope="module")
def mimi() -> MimiModel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        return random_mimi()


@pytest.fixture(scope="module")
def sounds(mimi: MimiModel) -> list[Array]:
    torch.manual_seed(1)
    lengths = [FRAMES] * (CALLS - 1) + [LONG_FRAMES]
    return [speech_like(12)[0, 0, :frames * mimi.frame_size].numpy().reshape(frames, -1) for frames in lengths]


@pytest.fixture(scope="module")
def codes(mimi: MimiModel, sounds: list[Array]) -> list[Array]:
    return [encode_alone(mimi, sound) for sound in sounds]


@pytest.fixture(scope="module", params=["encode", "decode"])
def half(request: pytest.FixtureRequest, mimi: MimiModel, sounds: list[Array], codes: list[Array]) -> Half:
    encoder, decoder = build_engines(mimi, SLOTS)
    if request.param == "encode":
        return Half(encoder, sounds, codes)
    return Half(decoder, codes, [decode_alone(mimi, call) for call in codes])


def test_alone(half: Half) -> None:
    half.play({3: 0} for _ in range(FRAMES))


def test_past_the_attention_context(half: Half) -> None:
    half.play({5: CALLS - 1} for _ in range(LONG_FRAMES))


def test_eight_rows_that_start_at_different_moments(half: Half) -> None:
    half.play({row: row for row in range(SLOTS) if row <= tick < row + FRAMES} for tick in range(FRAMES + SLOTS - 1))


def test_a_row_that_is_leased_again(half: Half) -> None:
    half.play({2: tick // FRAMES} for tick in range(3 * FRAMES))


def test_rows_that_are_not_named_keep_their_state(half: Half) -> None:
    random = np.random.default_rng(0)
    left = dict.fromkeys(range(SLOTS), FRAMES)
    ticks = []
    while left:
        rows = [int(row) for row in random.permutation(list(left)) if random.random() < 0.4]
        for row in rows:
            left[row] -= 1
            if not left[row]:
                del left[row]
        if rows:
            ticks.append({row: SLOTS - 1 - row for row in rows})
    half.play(ticks)


def test_opening_a_row_leaves_its_neighbours_alone(half: Half) -> None:
    half.play({1: 1} if tick % 3 else {0: tick // 3 + 2, 1: 1} for tick in range(12))


def test_without_packed_weights(half: Half, mimi: MimiModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "packs", lambda weight: False)
    plain = type(half.engine)(mimi, SLOTS)
    Half(plain, half.inputs, half.expected).play({row: row for row in range(SLOTS)} for _ in range(6))


def test_both_ways_to_attend_agree() -> None:
    torch.manual_seed(0)
    queries, ring = torch.randn(3, 4, 2, 16), torch.randn(6, 2, 4, 10, 16)
    rows, bias = torch.tensor([4, 0, 2]), torch.randn(3, 1, 2, 10)
    bias[0, :, :, 7:] = -torch.inf
    torch.testing.assert_close(attend_row_by_row(queries, ring, rows, bias),
                               attend_gathered(queries, ring, rows, bias))


def test_a_mimi_of_another_make_is_refused(mimi: MimiModel) -> None:
    other = copy.deepcopy(mimi)
    other.encoder.model[2] = torch.nn.Tanh()
    with pytest.raises(ValueError, match="Mimi has a Tanh"):
        build_engines(other, 1)


def test_warm_up_leaves_the_rows_alone(half: Half) -> None:
    half.engine.open(4)
    before = half.engine.step([4], half.inputs[4][:1])
    half.engine.warm_up()
    after = half.engine.step([4], half.inputs[4][1:2])
    same(np.concatenate([before, after]), half.expected[4][:2])


def test_the_facts_come_from_the_model(mimi: MimiModel) -> None:
    encoder, decoder = build_engines(mimi, 1)
    # Two layers of 250 steps, two steps a frame: 249 frames, and what convolutions hear.
    assert encoder.facts == CodecFacts(24_000, 1920, 8, 1024, 252)
    assert decoder.facts == CodecFacts(24_000, 1920, 8, 1024, 254)


@pytest.mark.parametrize("chunk_frames", [1, 5, 8, 64, LONG_FRAMES])
@pytest.mark.parametrize("primed", [1, 2, 30, LONG_FRAMES - 10])
def test_a_row_primed_with_many_frames_at_once_is_where_steps_would_have_brought_it(
        half: Half, primed: int, chunk_frames: int) -> None:
    engine, long = half.engine, half.inputs[CALLS - 1]
    stepped, brought = 6, 2
    for row in (stepped, brought):
        engine.open(row)
    engine._primer.chunk_frames, engine._primer._most_frames = chunk_frames, sys.maxsize  # on a busy machine, too
    for frame in long[:primed]:
        engine.step([stepped], frame[None])
    assert len(list(engine.prime(brought, long[:primed]))) == -(-primed // chunk_frames)
    for name, state in engine._half.named_buffers():
        if name == "memory" or name.endswith("ring"):
            torch.testing.assert_close(state[brought], state[stepped], atol=2e-5, rtol=1e-4, msg=name)
    assert engine._half._transformer.positions[brought] == engine._half._transformer.positions[stepped]
    for frame in range(primed, primed + 10):
        same(engine.step([brought], long[[frame]])[0], half.expected[CALLS - 1][frame])


def test_neighbours_step_between_the_chunks_of_a_past(half: Half) -> None:
    engine, long = half.engine, half.inputs[CALLS - 1]
    engine.open(0)
    engine.open(1)
    engine._primer.chunk_frames, engine._primer._most_frames = 8, sys.maxsize
    for frame, _ in enumerate(engine.prime(1, long[:LONG_FRAMES - 2])):
        same(engine.step([0], half.inputs[0][[frame]])[0], half.expected[0][frame])
    same(engine.step([1], long[[LONG_FRAMES - 2]])[0], half.expected[CALLS - 1][LONG_FRAMES - 2])


def test_a_row_primed_with_what_the_facts_say_goes_on_as_if_it_had_heard_all(mimi: MimiModel) -> None:
    """Whatever it heard before: a row that heard something else goes on with the same codes and sound."""
    torch.manual_seed(2)
    for engine, frames in ((EncodeEngine(mimi, 2), None), (DecodeEngine(mimi, 2), 1024)):
        count = engine.facts.priming_frames
        before, after = 20, 10
        if frames is None:
            sound = speech_like(28)[0, 0].numpy()
            inputs = sound[:(before + count + after) * mimi.frame_size].reshape(-1, mimi.frame_size)
        else:
            inputs = np.random.default_rng(0).integers(0, frames, (before + count + after, 8))
        for row, first in ((0, 0), (1, before)):
            engine.open(row)
            list(engine.prime(row, inputs[first:before + count]))
        for frame in inputs[before + count:]:
            long, short = engine.step([0, 1], np.stack([frame, frame]))
            same(short, long)


def test_a_call_moves_from_a_mimi_that_hears_as_far_as_the_real_one() -> None:
    """8 layers of 250 steps: 64 frames of the past leave other codes, all of a call's do not."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = MIMI_CONFIG | {"transformer": MIMI_CONFIG["transformer"] | {"num_layers": 8}}
    with torch.no_grad():
        far = random_mimi(config)
    encoder, decoder = build_engines(far, 3)
    assert encoder.facts.priming_frames == decoder.facts.priming_frames == MOST_PRIMING_FRAMES
    calls = 190
    pcm = speech_like(18)[0, 0, :(calls + 20) * far.frame_size].numpy().reshape(-1, far.frame_size)
    codes = np.concatenate([encoder.step([0], frame[None]) for frame in pcm[:calls]])
    for frame in codes:
        decoder.step([0], frame[None])
    for row, first in ((1, 0), (2, calls - 64)):
        list(encoder.prime(row, pcm[first:calls]))
        list(decoder.prime(row, codes[first:calls]))
    heard = np.stack([encoder.step([0, 1, 2], np.stack([frame] * 3)) for frame in pcm[calls:]], 1)
    said = np.stack([decoder.step([0, 1, 2], np.stack([frame] * 3)) for frame in heard[0]], 1)
    same(heard[1], heard[0])
    same(said[1], said[0])
    assert (heard[2] != heard[0]).mean() > 0.1 and np.abs(said[2] - said[0]).max() > 1e-3


@pytest.mark.parametrize("codebooks", [1, 4, 7])
def test_fewer_codebooks_are_decoded_as_moshi_decodes_them(mimi: MimiModel, codes: list[Array], codebooks: int) -> None:
    _, decoder = build_engines(mimi, 2)
    expected = decode_alone(mimi, codes[0][:, :codebooks])
    missing = np.full((FRAMES, 8 - codebooks), MISSING)
    padded = np.concatenate([codes[0][:, :codebooks], missing], 1)
    for frame, whole, pcm in zip(padded, codes[1], expected, strict=True):
        same(decoder.step([0, 1], np.stack([frame, whole]))[0], pcm)


def test_a_chunk_is_as_long_as_others_can_wait(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primer, "CHUNK_S", 0.0)
    half.engine.warm_up()
    assert half.engine._primer.chunk_frames == 1
    monkeypatch.setattr(primer, "CHUNK_S", 1e9)
    half.engine.warm_up()
    assert half.engine._primer.chunk_frames == primer.MOST_CHUNK_FRAMES


def test_the_last_frames_have_to_do_where_all_would_take_too_long(
        half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    long = half.inputs[CALLS - 1]
    monkeypatch.setattr(primer, "PRIMING_S", 1e-9)
    half.engine.warm_up()
    for row, past in ((0, long[:40]), (1, long[39:40])):
        half.engine.open(row)
        assert len(list(half.engine.prime(row, past))) == 1
    short, long_past = half.engine.step([0, 1], long[[40, 40]])
    same(short, long_past)
    monkeypatch.undo()
    half.engine.warm_up()
    assert half.engine._primer._most_frames > LONG_FRAMES


@pytest.mark.parametrize(("name", "words"), [
    ("encoder.model.0.conv.conv.weight", "the latents that Mimi's encoder makes of silence are not finite"),
    ("decoder.model.0.conv.conv.weight", "the samples that Mimi's decoder makes of codes are not finite"),
])
def test_a_mimi_that_computes_nothing_is_refused(mimi: MimiModel, name: str, words: str) -> None:
    broken = copy.deepcopy(mimi)
    with torch.no_grad():
        broken.get_parameter(name).fill_(3e38)
        broken.get_parameter(name.replace("weight", "bias")).fill_(3e38)
    with pytest.raises(NotFinite, match=words):
        for engine in build_engines(broken, 1):
            engine.warm_up()


def test_more_rows_than_one_step_takes(half: Half, mimi: MimiModel) -> None:
    engine = type(half.engine)(mimi, 2 * MOST_CPU_ROWS)
    rows = list(range(MOST_CPU_ROWS - 2, MOST_CPU_ROWS + SLOTS - 2)) + list(range(MOST_CPU_ROWS - 2))
    for frame in range(2):
        answers = engine.step(rows, np.stack([half.inputs[row % SLOTS][frame] for row in rows]))
        for row, answer in zip(rows, answers, strict=True):
            same(answer, half.expected[row % SLOTS][frame])


@pytest.mark.parametrize("slots", [1, 2, 3, 8, 17, 100])
def test_every_number_of_rows_has_a_bucket_that_wastes_at_most_a_third(slots: int) -> None:
    buckets = row_buckets(slots)
    assert buckets[-1] == slots
    for rows in range(1, slots + 1):
        bucket = next(size for size in buckets if size >= rows)
        assert (bucket - rows) / bucket <= 1 / 3


def test_speech_gives_varied_codes(codes: list[Array]) -> None:
    for codebook in np.concatenate(codes).T:
        assert len(np.unique(codebook)) > 50


def test_a_step_that_a_gpu_does_not_capture_runs_kernel_by_kernel(mimi: MimiModel, caplog: pytest.LogCaptureFixture
                                                                  ) -> None:
    def refusing(run: Replay) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing\nand ten pages more")

    encoder, recorded = (build_engines(mimi, 2)[0] for _ in range(2))
    encoder._run._capture = refusing  # type: ignore[assignment]
    pcm = np.random.default_rng(0).normal(0, 0.1, (2, encoder.facts.samples_per_frame)).astype(np.float32)
    assert (encoder.step([0, 1], pcm) == recorded.step([0, 1], pcm)).all()
    assert "a step of 2 rows is not captured" in caplog.text and "ten pages" not in caplog.text


def test_a_captured_step_replays_on_its_own_inputs(mimi: MimiModel) -> None:
    captured = []

    def capture(run: Replay) -> Replay:
        captured.append(run())
        return run

    encoder, recorded = (build_engines(mimi, 2)[0] for _ in range(2))
    encoder._run._capture = capture  # type: ignore[assignment]
    pcm = np.random.default_rng(0).normal(0, 0.1, (3, 2, encoder.facts.samples_per_frame)).astype(np.float32)
    for frame in pcm:
        assert (encoder.step([1, 0], frame) == recorded.step([1, 0], frame)).all()
    assert len(captured) == 1
