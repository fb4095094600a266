"""A call at the caller's own sample rate: the edge resamples what it says and what it hears."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

import numpy as np
from moshimesh.audio.v1 import audio_pb2

from services.gateway.calls.callers import Audio, Caller, Input, Opening
from services.gateway.calls.desk import Desk
from services.gateway.calls.events import Event, Ready, Speech
from services.gateway.edges.resampling import RATES_HERTZ, Resampler
from services.mesh.errors import InvalidRequest


async def hold_at(desk: Desk, caller: Caller, opening: Opening, sample_rate_hertz: int, inputs: AsyncIterator[Input]
                  ) -> AsyncGenerator[Event, None]:
    """`Desk.hold` for a caller whose audio has this rate in both directions. At the mesh's own nothing is touched.

    Raises InvalidRequest for a rate that is not among RATES_HERTZ and not the mesh's, and what the desk raises.
    """
    if sample_rate_hertz not in RATES_HERTZ:
        own_hertz = (await desk.info()).sample_rate_hertz
        if sample_rate_hertz != own_hertz:
            accepted = ", ".join(map(str, sorted({*RATES_HERTZ, own_hertz})))
            raise InvalidRequest("BAD_SAMPLE_RATE", f"audio may have {accepted} Hz, got {sample_rate_hertz}",
                                 field="config.sample_rate_hertz", accepted=accepted)
    call = _Call(sample_rate_hertz, opening.first_sequence)
    async with contextlib.aclosing(desk.hold(caller, opening, call.heard(inputs))) as events:
        async for event in events:
            yield call.told(event)


class _Call:
    """Both directions of one call. The mesh's rate is known when it is ready, and so before any audio."""

    def __init__(self, rate_hertz: int, first_sequence: int) -> None:
        self._rate_hertz, self._first_sequence = rate_hertz, first_sequence
        self._resampling: tuple[Resampler, Resampler] | None = None
        self._ready: Ready | None = None
        self._last_sequence = -1  # of the call's last answer, when that is known

    async def heard(self, inputs: AsyncIterator[Input]) -> AsyncGenerator[Input, None]:
        """What the caller says, at the mesh's rate."""
        if self._resampling is None:
            async for given in inputs:
                yield given
            return
        into, samples = self._resampling[0], 0
        async for given in inputs:
            if isinstance(given, Audio):
                given = Audio(into.resample(given.pcm))
                samples += len(given.pcm)
                if not len(given.pcm):  # a last piece of a few samples
                    continue
            yield given
        if samples:
            tail = into.flush()
            samples += len(tail)
            assert self._ready is not None
            frames = -(-samples // self._ready.samples_per_frame)
            self._last_sequence = self._first_sequence + frames + self._ready.delay_frames - 1
            yield Audio(tail)

    def told(self, event: Event) -> Event:
        """What the caller hears, at its own rate. The last answer also has what the filter still held."""
        if isinstance(event, Ready) and event.sample_rate_hertz != self._rate_hertz:
            self._ready = event
            self._resampling = (Resampler(self._rate_hertz, event.sample_rate_hertz),
                                Resampler(event.sample_rate_hertz, self._rate_hertz))
            return replace(event, sample_rate_hertz=self._rate_hertz, samples_per_frame=round(
                event.samples_per_frame * self._rate_hertz / event.sample_rate_hertz))
        if isinstance(event, Speech) and self._resampling is not None:
            into, out = self._resampling
            pcm = out.resample(event.pcm)
            if event.context.sequence == self._last_sequence:
                pcm = np.concatenate((pcm, out.flush()))
            _count_delay(event.context, into.delay_s, out.delay_s)
            return replace(event, pcm=pcm)
        return event


def _count_delay(context: audio_pb2.FrameContext, into_s: float, out_s: float) -> None:
    """Count the filters' delay in the frame's timings: its sound came so much earlier, and leaves so much later."""
    context.capture_unix_nanos -= round(into_s * 1e9)
    context.hops[0].received_unix_nanos -= round(into_s * 1e9)
    context.hops[-1].finished_unix_nanos += round(out_s * 1e9)
