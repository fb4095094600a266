"""What a CUDA graph would replay, run directly on the CPU: the same tokens, from a handful of shapes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from services.lm.directing import Directed
from services.lm.engine import LmEngine
from services.lm.graphed import GraphedNetwork, bucket
from services.lm.network import Bends, Draws, Shapes
from services.lm.sampling import Sampling
from services.mesh.cuda_graphs import Replay
from tests.lm.small_lm import Ints, random_codes, random_lm
from tests.lm.test_selfcheck import right


class Recorder:
    """Stands in for capture, and counts the graphs."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, run: Replay) -> Replay:
        self.graphs += 1
        return run


def tokens_of(engine: LmEngine, frames: int = 60) -> Ints:
    """Three sessions that start one after the other, and half-way one is directed."""
    samplings = [Sampling(seed=3), Sampling(text_temperature=0, audio_temperature=0), Sampling(seed=4, audio_top_k=0)]
    for row, sampling in enumerate(samplings):
        engine.open(row, sampling)
    answers = []
    for frame in range(frames):
        rows = [row for row in (2, 0, 1) if frame >= 5 * row]
        if frame == frames // 2:
            engine.direct(1, Directed(Sampling(seed=9, padding_bonus=2, repetition_penalty=1.5), np.full((7, 9), 5)))
        answers.append(engine.step(rows, np.stack([random_codes(60, row)[frame] for row in rows])))
    return np.concatenate(answers)


def test_fixed_shapes_give_the_same_tokens() -> None:
    lm = random_lm(num_layers=2, context=40)
    exact, shaped = LmEngine(lm, slots=5), LmEngine(lm, slots=5)
    recorder = Recorder()
    shaped._generate = GraphedNetwork(shaped._network, torch.zeros_like(exact._generate._rings), recorder)
    assert np.array_equal(tokens_of(shaped), tokens_of(exact))
    assert recorder.graphs <= 6  # 1, 2 and 4 rows; top-k 256 and, from the third session on, all 2048


def test_graphs_of_other_rows_leave_a_row_alone_that_is_being_rebuilt() -> None:
    engine = LmEngine(random_lm(num_layers=2, context=200), slots=3)
    engine._generate = GraphedNetwork(engine._network, engine._rings, Recorder())
    greedy = Sampling(text_temperature=0, audio_temperature=0)
    codes, tokens = random_codes(420, 1), np.random.default_rng(1).integers(0, 512, (400, 9))
    for row in range(3):
        engine.open(row, greedy)
    list(engine.prefill(0, codes[:400], tokens))
    for _ in engine.prefill(1, codes[:400], tokens):
        engine.step([2], codes[:1])  # a graph of rows 0 to 2, which writes to all of them
    answers = np.stack([engine.step([0, 1], codes[[frame, frame]]) for frame in range(400, 420)])
    assert np.array_equal(answers[:, 0], answers[:, 1])


def test_prepared_shapes_are_all_a_session_needs() -> None:
    engine = LmEngine(random_lm(num_layers=1, context=40), slots=3)
    recorder = Recorder()
    engine._generate = GraphedNetwork(engine._network, engine._generate._rings, recorder)
    engine.warm_up()
    assert recorder.graphs == 6  # 1, 2 and 3 rows, free and directed
    for row in range(3):
        engine.open(row, Sampling(seed=row))
        engine.step(range(row + 1), np.zeros((row + 1, 8), np.int64))
        engine.direct(row, Directed(Sampling(padding_bonus=1), np.full((1, 9), 5)))
        engine.step(range(row + 1), np.zeros((row + 1, 8), np.int64))
    assert recorder.graphs == 6


def test_attention_that_reads_lengths_on_the_device_needs_a_graph_for_rows_alone() -> None:
    lm = random_lm(num_layers=2, context=300)
    exact, shaped = LmEngine(lm, slots=5), LmEngine(lm, slots=5)
    recorder = Recorder()
    shaped._generate = GraphedNetwork(shaped._network, torch.zeros_like(exact._generate._rings), recorder, right)
    assert np.array_equal(tokens_of(shaped), tokens_of(exact))
    shaped._generate.prepare((25, 250))
    buckets = {active for active, *_ in shaped._generate._graphs}
    assert buckets == {1, 4, 5}
    assert len({shapes.filled for _, shapes, _ in shaped._generate._graphs}) == 1


def test_a_step_that_reads_lengths_and_top_k_on_the_device_needs_a_graph_for_rows_alone() -> None:
    lm = random_lm(num_layers=1, context=40)
    exact, shaped = LmEngine(lm, slots=5), LmEngine(lm, slots=5)
    network, rings = shaped._network, torch.zeros_like(exact._rings)

    def fused(tokens: Tensor, rings: Tensor, positions: Tensor, draws: Draws, bends: Bends | None) -> Tensor:
        rows = torch.arange(len(tokens))
        found: Tensor = network(tokens, rings, rows, positions, draws, Shapes(40, network.cardinalities), bends, right)
        return found

    shaped._generate = GraphedNetwork(network, rings, Recorder(), fused=fused)
    assert np.array_equal(tokens_of(shaped, 14), tokens_of(exact, 14))
    shaped._generate.prepare((25, 250))
    assert {active for active, *_ in shaped._generate._graphs} == {1, 4, 5}
    assert len({shapes for _, shapes, _ in shaped._generate._graphs}) == 1


@pytest.mark.parametrize(("size", "rounded"), [(1, 4), (4, 4), (5, 8), (64, 64), (65, 100), (100, 100)])
def test_bucket(size: int, rounded: int) -> None:
    assert bucket(size, 4, 100) == rounded
