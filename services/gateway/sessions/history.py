"""What a session's row of the language model has heard and said: enough to build the row again elsewhere."""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Sequence

from moshimesh.lm.v1 import lm_pb2

BLOCK_STEPS = 250  # what is too old leaves in blocks: moving the rest at every step would cost more than the step
REWIND_STEPS = 125  # kept beyond the context, so that a call which goes back some seconds still has all of it

_SHAPE = struct.Struct("<HHII")  # user codebooks, own codebooks, delay, context
_CHUNK = struct.Struct("<QII")  # first step, steps, the sequence expected before them; then the three arrays


class History:
    """The last steps of a session: 16-bit codes and tokens, and the caller's number of each frame."""

    def __init__(self, user_codebooks: int, own_codebooks: int, delay_frames: int, context_frames: int) -> None:
        self.user_codebooks, self.own_codebooks = user_codebooks, own_codebooks
        self.delay_frames, self.context_frames = delay_frames, context_frames
        self.first_step = 0  # of what is kept
        self.steps = 0  # since the start of the session
        self.rewinds = 0  # a journal written before a rewind has to be written again
        self._most = context_frames + delay_frames  # that a model takes
        self._user = array("H")
        self._tokens = array("H")  # a row for each kept step that had an answer
        self._sequences = array("I")
        self._sequence_before = 0  # next_sequence at first_step

    @property
    def most_kept(self) -> int:
        """Steps that are worth keeping."""
        return self._most + REWIND_STEPS

    @property
    def next_sequence(self) -> int:
        """The caller's number after the last frame heard."""
        return self._sequences[-1] + 1 if self._sequences else self._sequence_before

    def append(self, sequence: int, user_codes: Sequence[int], tokens: Sequence[int] | None) -> None:
        """Add an answered step: the text token and the own codes, None while the delay line fills.

        Raises:
            ValueError: the step has not the shape of this history, or its frame is not newer than the last.
        """
        if len(user_codes) != self.user_codebooks or (tokens is None) != (self.steps < self.delay_frames) or (
                tokens is not None and len(tokens) != self.own_codebooks + 1) or sequence < self.next_sequence:
            raise ValueError(f"step {self.steps} (frame {sequence}, {len(user_codes)} user codes, "
                             f"{'no' if tokens is None else len(tokens)} tokens) does not continue this history")
        self._sequences.append(sequence)
        self._user.extend(user_codes)
        if tokens is not None:
            self._tokens.extend(tokens)
        self.steps += 1
        if len(self._sequences) >= self.most_kept + BLOCK_STEPS:
            self._trim(len(self._sequences) - self.most_kept)

    def rewind(self, next_sequence: int) -> None:
        """Forget the steps of frames from next_sequence on.

        Raises:
            ValueError: so few are kept of those before that no model can go on from there.
        """
        kept = bisect_left(self._sequences, next_sequence)
        if kept == len(self._sequences):
            return
        if self.first_step and kept <= 2 * self.delay_frames:
            earliest = self._sequences[2 * self.delay_frames] + 1
            raise ValueError(f"this conversation can go back to frame {earliest}, not to {next_sequence}")
        self.steps = self.first_step + kept
        self.rewinds += 1
        del self._sequences[kept:]
        del self._user[kept * self.user_codebooks:]
        del self._tokens[self._token_row(self.steps):]

    def to_proto(self) -> lm_pb2.StepHistory:
        """The steps that a model needs, for StepConfig."""
        first = max(self.first_step, self.steps - self._most)
        return lm_pb2.StepHistory(first_step=first,
                                  user_codes=self._user[(first - self.first_step) * self.user_codebooks:],
                                  tokens=self._tokens[self._token_row(first):])

    def last_own_codes(self, frames: int) -> list[list[int]]:
        """The model's own codes of the last steps, oldest first; fewer if there are not as many."""
        width = self.own_codebooks + 1
        start = max(len(self._tokens) - frames * width, 0) if frames else len(self._tokens)
        return [self._tokens[row + 1:row + width].tolist() for row in range(start, len(self._tokens), width)]

    def user_codes_from(self, step: int) -> list[list[int]]:
        """The user's codes of the steps from `step` on, as far as they are kept."""
        width = self.user_codebooks
        start = max(step - self.first_step, 0) * width
        return [self._user[row:row + width].tolist() for row in range(start, len(self._user), width)]

    def pack_shape(self) -> bytes:
        """What `from_shape` makes an empty history of."""
        return _SHAPE.pack(self.user_codebooks, self.own_codebooks, self.delay_frames, self.context_frames)

    @classmethod
    def from_shape(cls, shape: bytes) -> History:
        """An empty history."""
        return cls(*_SHAPE.unpack(shape))

    def pack(self, first_step: int) -> bytes:
        """The steps from first_step on, as far as they are kept: a chunk of a journal."""
        first = max(first_step, self.first_step)
        skipped = first - self.first_step
        before = self._sequences[skipped - 1] + 1 if skipped else self._sequence_before
        parts = (self._sequences[skipped:], self._user[skipped * self.user_codebooks:],
                 self._tokens[self._token_row(first):])
        return _CHUNK.pack(first, self.steps - first, before) + b"".join(part.tobytes() for part in parts)

    def unpack(self, chunk: bytes) -> None:
        """Append a chunk that continues this history; the first one says where it starts.

        Raises:
            ValueError: it does not continue it, or is damaged.
        """
        first, count, before = _CHUNK.unpack_from(chunk)
        if not self.steps and not self._sequences:
            self.first_step = self.steps = first
            self._sequence_before = before
        answered = max(first + count - max(first, self.delay_frames), 0)
        sizes = (4 * count, 2 * count * self.user_codebooks, 2 * answered * (self.own_codebooks + 1))
        if first != self.steps or len(chunk) != _CHUNK.size + sum(sizes):
            raise ValueError(f"a chunk from step {first} on ({count} steps, {len(chunk)} bytes) does not continue a "
                             f"history of {self.steps} steps")
        start = _CHUNK.size
        for part, size in zip((self._sequences, self._user, self._tokens), sizes, strict=True):
            part.frombytes(chunk[start:start + size])
            start += size
        self.steps += count
        if len(self._sequences) >= self.most_kept + BLOCK_STEPS:
            self._trim(len(self._sequences) - self.most_kept)

    def _token_row(self, step: int) -> int:
        """Where the tokens of a kept step begin."""
        return max(step - max(self.first_step, self.delay_frames), 0) * (self.own_codebooks + 1)

    def _trim(self, steps: int) -> None:
        self._sequence_before = self._sequences[steps - 1] + 1
        del self._tokens[:self._token_row(self.first_step + steps)]
        del self._sequences[:steps]
        del self._user[:steps * self.user_codebooks]
        self.first_step += steps
