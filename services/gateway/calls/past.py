"""The audio that a caller who was cut off sends before its conversation is open: see `PastAhead`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

import numpy as np

from services.gateway.calls.callers import Audio, Input
from services.gateway.path.audio import AudioFormat, Pcm
from services.mesh.errors import SlowCaller
from services.mesh.incoming import CONFIG_WAIT_S, next_within


async def take_past(inputs: AsyncIterator[Input], audio: AudioFormat, frames: int
                    ) -> tuple[Sequence[Pcm], AsyncIterator[Input]]:
    """So many frames of audio, float32 [samples_per_frame] each, and what comes after them. Fewer if something else
    than audio comes before.

    Raises InvalidRequest for what is no audio, SlowCaller when it does not come.
    """
    now = asyncio.get_running_loop().time
    deadline, wanted = now() + CONFIG_WAIT_S, frames * audio.samples_per_frame
    pieces: list[Pcm] = []
    samples, following = 0, deque[Input]()
    while samples < wanted and not following:
        try:
            given = await next_within(inputs, max(deadline - now(), 0.0))
        except StopAsyncIteration:
            break
        except (asyncio.TimeoutError, TimeoutError):
            raise SlowCaller(f"config.past_frames announced {frames} frames, which did not come within "
                             f"{CONFIG_WAIT_S:.0f} s; send them right after the config") from None
        if isinstance(given, Audio):
            audio.check(given.pcm)
            pieces.append(given.pcm)
            samples += len(given.pcm)
        else:
            following.append(given)
    heard: Pcm = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    whole = min(samples, wanted) // audio.samples_per_frame
    end = whole * audio.samples_per_frame
    if end < samples:
        following.appendleft(Audio(heard[end:]))
    return np.split(heard[:end], whole) if whole else [], _then(following, inputs)


async def _then(first: deque[Input], rest: AsyncIterator[Input]) -> AsyncIterator[Input]:
    while first:
        yield first.popleft()
    async for given in rest:
        yield given
