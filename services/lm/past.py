"""What a session brings from another replica, checked and as the engine takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from moshimesh.lm.v1 import lm_pb2

from services.lm.controls import ControlReader
from services.lm.delays import UNGENERATED, Ints
from services.lm.directing import DirectedAt
from services.mesh.errors import InvalidRequest

if TYPE_CHECKING:  # this file speaks gRPC, that one torch
    from services.lm.engine import LmFacts

# Rotary embedding turns by the position as a float32, which counts no further. At 12.5 steps a second, 15 days.
MOST_STEPS = 1 << 24


@dataclass(frozen=True)
class Past:
    """Arguments of `LmEngine.prefill`: codes [steps, user_codebooks] and tokens [steps, 1 + own_codebooks]."""

    codes: Ints
    tokens: Ints
    first_step: int
    controls: list[DirectedAt]


def read_past(wire: lm_pb2.StepHistory, facts: LmFacts, reader: ControlReader) -> Past:
    """The history that a caller sent; `reader` has then read its controls. Raises InvalidRequest for one that the
    model can't take.
    """
    steps, left_over = divmod(len(wire.user_codes), facts.user_codebooks)
    if left_over:
        raise _bad("user_codes", f"user_codes must have {facts.user_codebooks} codes for each step, got "
                   f"{len(wire.user_codes)}", f"a multiple of {facts.user_codebooks}")
    most = facts.context_frames + facts.delay_frames
    # Without its beginning, the inputs of the first steps can't be known; the first one to be made must be.
    fewest = 2 * facts.delay_frames + 1 if wire.first_step else 0
    if not fewest <= steps <= most:
        raise _bad("user_codes", f"a history from step {wire.first_step} on must have {fewest} to {most} steps, got "
                   f"{steps}", f"{fewest * facts.user_codebooks}..{most * facts.user_codebooks}")
    if wire.first_step + steps > MOST_STEPS:
        raise _bad("first_step", f"a session must not have more than {MOST_STEPS} steps, got {wire.first_step} before "
                   f"this history", f"0..{MOST_STEPS - steps}")
    unanswered = min(max(facts.delay_frames - wire.first_step, 0), steps)
    expected = (steps - unanswered) * (1 + facts.own_codebooks)
    if len(wire.tokens) != expected:
        raise _bad("tokens", f"{steps} steps from step {wire.first_step} on have {expected} tokens "
                   f"({1 + facts.own_codebooks} for each but the first {unanswered}), got {len(wire.tokens)}", expected)
    codes = np.array(wire.user_codes, np.int64).reshape(steps, facts.user_codebooks)
    answered = np.array(wire.tokens, np.int64).reshape(steps - unanswered, 1 + facts.own_codebooks)
    for field, kind, found, entries in (("user_codes", "codes", codes, facts.cardinality),
                                        ("tokens", "own codes", answered[:, 1:], facts.cardinality),
                                        ("tokens", "text tokens", answered[:, 0], facts.text_cardinality)):
        if found.max(initial=0) >= entries:
            raise _bad(field, f"{kind} must be between 0 and {entries - 1}, got {found.max()}", f"0..{entries - 1}")
    silence = np.full((unanswered, 1 + facts.own_codebooks), UNGENERATED)
    return Past(codes, np.concatenate([silence, answered]), wire.first_step,
                reader.read_all(wire.controls, wire.first_step + steps))


def _bad(field: str, message: str, accepted: object) -> InvalidRequest:
    return InvalidRequest("BAD_HISTORY", message, field=f"config.history.{field}", accepted=accepted)
