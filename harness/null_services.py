"""Codec and lm with engines that compute nothing, so that only the mesh itself is measured.

`python -m harness.null_services --codec-port N --lm-port N`
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.codec.config import CodecConfig
from services.codec.server import CodecServer
from services.lm.config import LmConfig
from services.lm.directing import Directed, DirectedAt
from services.lm.sampling import Sampling
from services.lm.server import LmServer
from services.mesh.engine_metrics import watch
from services.mesh.metrics import Metrics
from services.mesh.process import MeshServer
from services.mesh.telemetry import FrameTracer
from services.mesh.tls import peer_identity


@dataclass(frozen=True)
class NullFacts:
    """Moshi's sizes."""

    sample_rate_hertz: int = 24_000
    samples_per_frame: int = 1920
    codebooks: int = 8
    cardinality: int = 2048
    user_codebooks: int = 8
    own_codebooks: int = 8
    text_cardinality: int = 32_000
    delay_frames: int = 1
    context_frames: int = 3000
    weights_bytes: int = 0
    kv_bytes_per_frame: int = 0
    priming_frames: int = 64
    silent_text_tokens: tuple[int, int] = (3, 0)
    precision: str = "float32"
    kv_precision: str = "float32"
    floor_ms: float = 0.0


class NullEngine:
    """Answers at once with the zeros it was made for."""

    def __init__(self, slots: int, answer: np.ndarray, delay_frames: int = 0) -> None:
        """The first `delay_frames` steps of a session answer with -1."""
        self.slots, self.facts, self._answer = slots, NullFacts(), answer
        self._delay_frames = delay_frames
        self._steps = np.zeros(slots, np.int64)

    def open(self, row: int, sampling: Sampling | None = None) -> None:
        """Begin a session."""
        self._steps[row] = 0

    def direct(self, row: int, directed: Directed, step: int | None = None) -> None:
        """Its answers stay as they are."""

    def prefill(self, row: int, codes: np.ndarray, tokens: np.ndarray, first_step: int,
                controls: Sequence[DirectedAt] = ()) -> Iterator[None]:
        """Only their number matters; one chunk."""
        self._steps[row] = first_step + len(codes)
        yield

    def copy_row(self, row: int) -> None:
        """There is nothing to keep."""

    def prime(self, row: int, past: np.ndarray) -> Iterator[None]:
        """Forgotten at once; one chunk."""
        yield

    def step(self, rows: Sequence[int], frames: np.ndarray) -> np.ndarray:
        """Zeros [n, ...]."""
        answers = np.broadcast_to(self._answer, (len(rows), *self._answer.shape))
        if self._delay_frames:
            index = np.array(rows)
            self._steps[index] += 1
            answers = np.where(self._steps[index, None] <= self._delay_frames, -1, answers)
        return answers


class NullTokenizer:
    """The null model only pads, and a text is as many tokens as it has characters."""

    def id_to_piece(self, token: int) -> str:
        """No text."""
        return ""

    def encode(self, text: str) -> list[int]:
        """Any tokens."""
        return [5] * len(text)


async def main() -> None:
    """Serve both until a signal comes."""
    logging.basicConfig(level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--codec-port", type=int, required=True)
    parser.add_argument("--lm-port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=1024)
    parser.add_argument("--metrics-port", type=int, default=0, help="of both, together")
    options = parser.parse_args()
    codec_config = CodecConfig(host="127.0.0.1", port=options.codec_port)
    lm_config = LmConfig(host="127.0.0.1", port=options.lm_port)
    facts = NullFacts()
    codec_tracer = FrameTracer.export_to(codec_config.otlp_endpoint, "codec")
    lm_tracer = FrameTracer.export_to(lm_config.otlp_endpoint, "lm")
    codec: Any = CodecServer(
        NullEngine(options.slots, np.zeros(facts.codebooks, np.int64)),  # type: ignore[arg-type]
        NullEngine(options.slots, np.zeros(facts.samples_per_frame, np.float32)),  # type: ignore[arg-type]
        "null", codec_tracer, 10.0, speech_table=bytes(facts.codebooks * facts.cardinality))
    lm: Any = LmServer(
        NullEngine(options.slots, np.zeros(1 + facts.own_codebooks, np.int64),  # type: ignore[arg-type]
                   facts.delay_frames), NullTokenizer(), Sampling(), "null", "null", lm_tracer, 10.0)
    codec_server = MeshServer(codec_config, "codec", tls=peer_identity(codec_config))
    lm_server = MeshServer(lm_config, "lm", tls=peer_identity(lm_config))
    # One process, so one port: both services' batchers.
    metrics = Metrics.start(CodecConfig(host="127.0.0.1", metrics_port=options.metrics_port), "null")
    watch(metrics, (*codec.batchers, *lm.batchers))
    await codec_server.start(codec)
    await lm_server.start(lm)
    await lm_server.run_until_signal()
    await codec_server.stop(0)


if __name__ == "__main__":
    asyncio.run(main())
