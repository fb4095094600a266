"""What a session's row of the language model has heard and said: enough to build the row again elsewhere."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from moshimesh.journal.v1 import journal_pb2
from moshimesh.lm.v1 import lm_pb2

from services.gateway.sessions.controls import Controls

BLOCK_STEPS = 250  # old steps are dropped in blocks: moving the rest at every step would cost more than the step
REWIND_STEPS = 125  # kept beyond the context: a call that goes back by some seconds still has a whole context then


class KeptSteps(NamedTuple):
    """Consecutive steps, copied from a history: see there."""

    first_step: int
    sequences: array[int]
    user_codes: array[int]
    tokens: array[int]


class History:
    """The last steps of a session: 16-bit codes and tokens, the caller's number of each frame, and controls."""

    def __init__(self, user_codebooks: int, own_codebooks: int, delay_frames: int, context_frames: int) -> None:
        self.user_codebooks, self.own_codebooks = user_codebooks, own_codebooks
        self.delay_frames, self.context_frames = delay_frames, context_frames
        self.first_step = 0  # of what is kept
        self.steps = 0  # since the start of the session
        self.rewinds = 0  # how often steps were forgotten: a journal that was written before has them still
        self.controls = Controls()
        self.prompt: lm_pb2.StepPrompt | None = None  # what came before step 0
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

    def append(self, sequence: int, user_codes: Sequence[int], tokens: Sequence[int] | None,
               controls: lm_pb2.StepControls | None = None) -> None:
        """Add an answered step: the text token and the own codes, None while the delay line fills; and what was
        decided about it, if anything was.

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
        if controls is not None:
            self.controls.append(self.steps, controls)
        self.steps += 1
        if len(self._sequences) >= self.most_kept + BLOCK_STEPS:
            self._trim(len(self._sequences) - self.most_kept)

    def rewind(self, next_sequence: int) -> None:
        """Forget the steps of frames from next_sequence on.

        Raises:
            ValueError: too few of the steps before that frame are kept for a model to go on from it.
        """
        kept = bisect_left(self._sequences, next_sequence)
        if kept == len(self._sequences):
            return
        if self.first_step and kept <= 2 * self.delay_frames:
            earliest = self._sequences[2 * self.delay_frames] + 1
            raise ValueError(f"this conversation can go back to frame {earliest}, not to {next_sequence}")
        self.steps = self.first_step + kept
        self.rewinds += 1
        self.controls.forget_from(self.steps, lambda step: self._sequences[step - self.first_step])
        del self._sequences[kept:]
        del self._user[kept * self.user_codebooks:]
        del self._tokens[self._token_row(self.steps):]

    def to_proto(self) -> lm_pb2.StepHistory:
        """The steps that a model needs, for StepConfig."""
        first = max(self.first_step, self.steps - self._most)
        return lm_pb2.StepHistory(first_step=first,
                                  user_codes=self._user[(first - self.first_step) * self.user_codebooks:],
                                  tokens=self._tokens[self._token_row(first):],
                                  controls=self.controls.since(first))

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

    def kept_steps(self) -> Iterator[tuple[int, list[int], list[int] | None, lm_pb2.StepControls | None]]:
        """The caller's number, the user's codes, the tokens (None while the delay line filled), and the controls, if
        there were any, of each kept step.
        """
        heard, said, controls = self.user_codebooks, self.own_codebooks + 1, self.controls.by_step()
        for kept, sequence in enumerate(self._sequences):
            step, row = self.first_step + kept, self._token_row(self.first_step + kept)
            yield (sequence, self._user[kept * heard:(kept + 1) * heard].tolist(),
                   None if step < self.delay_frames else self._tokens[row:row + said].tolist(), controls.get(step))

    def steps_from(self, first_step: int) -> KeptSteps:
        """The steps from first_step on, as far as they are kept."""
        first = max(first_step, self.first_step)
        start = first - self.first_step
        return KeptSteps(first, self._sequences[start:], self._user[start * self.user_codebooks:],
                         self._tokens[self._token_row(first):])

    def chunk(self, first_step: int) -> journal_pb2.Chunk:
        """The steps from first_step on, as far as they are kept, for a journal. The caller adds version and age."""
        kept = self.steps_from(first_step)
        start = kept.first_step - self.first_step
        expected = self._sequences[start - 1] + 1 if start else self._sequence_before
        return journal_pb2.Chunk(
            first_step=kept.first_step, first_sequence=expected, skipped=_skipped(expected, kept.sequences),
            user_codes=_little_endian(kept.user_codes).tobytes(), tokens=_little_endian(kept.tokens).tobytes(),
            controls=self.controls.since(kept.first_step))

    def begin(self, first_step: int, user_codes: Sequence[int], tokens: Sequence[int],
              controls: Iterable[lm_pb2.StepControlsAt]) -> None:
        """Let an empty history begin with a recording's steps, laid out as in KeptSteps; each frame has its step's
        number. Raises ValueError when they have not its shape.
        """
        try:
            user, said = array("H", user_codes), array("H", tokens)
            sequences = array("I", range(first_step, first_step + len(user) // self.user_codebooks))
        except OverflowError:
            raise ValueError("codes and tokens are below 2^16, and steps below 2^32") from None
        self._extend(KeptSteps(first_step, sequences, user, said), first_step, controls)

    def extend(self, chunk: journal_pb2.Chunk) -> None:
        """Append a chunk of a journal that continues this history. An empty history begins where the chunk begins.

        Raises:
            ValueError: it does not continue this history, or has not its shape.
        """
        user, tokens = array("H"), array("H")
        user.frombytes(chunk.user_codes)
        tokens.frombytes(chunk.tokens)
        sequences = _sequences(chunk, len(user) // self.user_codebooks)
        self._extend(KeptSteps(chunk.first_step, sequences, _little_endian(user), _little_endian(tokens)),
                     chunk.first_sequence, chunk.controls)

    def _extend(self, added: KeptSteps, first_sequence: int, controls: Iterable[lm_pb2.StepControlsAt]) -> None:
        """Append steps; frames between `first_sequence` and the first of them were skipped. Raises ValueError."""
        first, steps = added.first_step, len(added.sequences)
        answered = max(first + steps - max(first, self.delay_frames), 0)
        empty = not self.steps and not self._sequences
        shape = (steps * self.user_codebooks, answered * (self.own_codebooks + 1))
        if (len(added.user_codes), len(added.tokens)) != shape or not (
                empty or (first, first_sequence) == (self.steps, self.next_sequence)):
            raise ValueError(f"what begins with step {first} ({len(added.user_codes)} user codes, {len(added.tokens)} "
                             f"tokens) does not continue a history of {self.steps} steps")
        if empty:
            self.first_step = self.steps = first
            self._sequence_before = first_sequence
        self.controls.extend((at for at in controls if empty or at.step >= first), first + steps)
        self._sequences.extend(added.sequences)
        self._user.extend(added.user_codes)
        self._tokens.extend(added.tokens)
        self.steps += steps
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
        self.controls.forget_before(self.first_step)


def _skipped(expected: int, sequences: array[int]) -> list[journal_pb2.SkippedFrames]:
    """The steps before which frames were skipped: their numbers do not follow each other from `expected`."""
    if not sequences or sequences[-1] - expected == len(sequences) - 1:
        return []  # nearly always: a live call skips when a replica is late, an offline one never
    skipped = []
    for step, sequence in enumerate(sequences):
        if sequence != expected:
            skipped.append(journal_pb2.SkippedFrames(step=step, frames=sequence - expected))
        expected = sequence + 1
    return skipped


def _sequences(chunk: journal_pb2.Chunk, steps: int) -> array[int]:
    """The caller's number of each step's frame. Raises ValueError."""
    sequences = array("I")
    following = chunk.first_sequence
    try:
        for skip in chunk.skipped:
            if not len(sequences) <= skip.step < steps:
                raise ValueError(f"step {skip.step} of a chunk of {steps} is out of order")
            until = following + skip.step - len(sequences)
            sequences.extend(range(following, until))
            following = until + skip.frames
        sequences.extend(range(following, following + steps - len(sequences)))
    except OverflowError:
        raise ValueError(f"a chunk that begins with frame {chunk.first_sequence} has numbers beyond 2^32") from None
    return sequences


def _little_endian(values: array[int]) -> array[int]:
    """A fresh array's values in the order of bytes that journals have, or back."""
    if sys.byteorder == "big":
        values.byteswap()
    return values
