"""Directs a conversation that goes on: settings, interruption, text to speak, and what was heard."""

from __future__ import annotations

from collections import deque

from moshimesh.gateway.v1 import conversation_pb2
from moshimesh.lm.v1 import lm_pb2

KEPT = 1000  # controls: as many as the mesh takes of a call within the seconds of audio that are kept


class Director:
    """Give one to `Mesh.converse`, and call it while the conversation goes on.

    Each call takes effect at the next frame of the caller's audio. When the conversation is cut off and resumed, what
    had not reached the mesh is sent again with the audio around it.
    """

    def __init__(self) -> None:
        self._position = 0  # in bytes of the caller's audio
        self._kept: deque[tuple[int, int, conversation_pb2.Control]] = deque(maxlen=KEPT)  # number, position, what
        self._given = 0

    def set_sampling(self, *, text_temperature: float | None = None, text_top_k: int | None = None,
                     audio_temperature: float | None = None, audio_top_k: int | None = None,
                     padding_bonus: float | None = None, repetition_penalty: float | None = None,
                     repetition_penalty_context: int | None = None) -> None:
        """Draw tokens like this from now on; None leaves a setting as it is, temperature 0 is greedy. With a
        padding_bonus above 0 the model says less, with a repetition_penalty above 1 it repeats itself less.
        """
        self._give(conversation_pb2.Control(sampling=lm_pb2.Sampling(
            text_temperature=text_temperature, text_top_k=text_top_k, audio_temperature=audio_temperature,
            audio_top_k=audio_top_k, padding_bonus=padding_bonus, repetition_penalty=repetition_penalty,
            repetition_penalty_context=repetition_penalty_context)))

    def interrupt(self, hold_s: float | None = None) -> None:
        """Silence the model for so long, 10 s at the most; None: as long as the mesh thinks right."""
        hold_ms = None if hold_s is None else round(hold_s * 1000)
        self._give(conversation_pb2.Control(interrupt=conversation_pb2.Interrupt(hold_ms=hold_ms)))

    def say(self, text: str) -> None:
        """Let the model speak a text."""
        self._give(conversation_pb2.Control(say=conversation_pb2.Say(text=text)))

    def played_out(self, sequence: int) -> None:
        """The loudspeaker has played the speech up to the frame of this number. Tell it a few times a second."""
        self._give(conversation_pb2.Control(played_out=conversation_pb2.PlayedOut(sequence=sequence)))

    def _give(self, control: conversation_pb2.Control) -> None:
        self._kept.append((self._given, self._position, control))
        self._given += 1

    def reached(self, position: int) -> None:
        """So many bytes of audio have been sent; `converse` says so."""
        self._position = max(self._position, position)

    def first_since(self, position: int) -> int | None:
        """Where the first control was given that changes what the model says, of those with audio from a position on.
        """
        return next((at for _, at, control in self._kept
                     if at >= position and not control.HasField("played_out")), None)

    def due(self, number: int, begin: int, end: int) -> list[tuple[int, conversation_pb2.Control]]:
        """The controls from a number on that were given with audio between two positions, each with its number."""
        return [(each, control) for each, at, control in self._kept if each >= number and begin <= at <= end]
