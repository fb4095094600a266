"""Sound between the client's format and the mesh's: 16 bit PCM or G.711, at any rate that is served."""

from __future__ import annotations

from collections.abc import Callable

from moshimesh.audio.v1 import audio_pb2

from services.gateway.edges import pcm
from services.gateway.edges.web.realtime.feed import Ear
from services.gateway.edges.web.realtime.settings import Format
from services.gateway.path.audio import Pcm

S16 = audio_pb2.AUDIO_ENCODING_PCM_S16LE


class ClientsEar:
    """Reads a client's sound; see Ear."""

    def __init__(self, format: Format, rate: int) -> None:
        """`rate` is the mesh's."""

    def decode(self, data: bytes) -> Pcm:
        """See Ear."""
        return pcm.decode(data, S16)


def ear_of(rate: int) -> Callable[[Format], Ear]:
    """What reads a client's sound in a format for a mesh of this rate."""
    return lambda format: ClientsEar(format, rate)


class Mouth:
    """Writes the model's sound in the format that is in force; see Voice."""

    def __init__(self, rate: int, format: Callable[[], Format]) -> None:
        """`rate` is the mesh's."""

    def encode(self, sound: Pcm) -> bytes:
        """See Voice."""
        return pcm.encode(sound, S16)

    def finish(self) -> bytes:
        """See Voice."""
        return b""
