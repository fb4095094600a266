"""Opus packets (RFC 6716) to samples and back, mono, by libopus.

The library comes in a wheel and is called through ctypes, with a signature for each call that we make; calls release
the GIL. A frame of 80 ms takes 0.15 ms to encode and 0.06 ms to decode, so both are done on the event loop.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import opuslib_next.api

from services.gateway.path.audio import Pcm
from services.mesh.errors import InvalidRequest

CODED_HERTZ = (8000, 12000, 16000, 24000, 48000)  # that libopus codes at by itself
MOST_PACKET_MS = 120
MOST_PACKET_BYTES = 61_440  # 48 parts of at most 1275 bytes, and their lengths
# What callers hear. In this mode a frame of speech takes 0.15 ms of CPU time, instead of 0.8 ms in the mode for speech
# at libopus's default effort, and 2.5 ms of look-ahead instead of 6.5; it needs 37 kb/s for what that mode does in 25.
_APPLICATION_RESTRICTED_LOWDELAY = 2051
_BITS_PER_S = 48_000
_COMPLEXITY = 5
_MOST_ENCODED_BYTES = 4 * 1276 + 16  # 80 ms at the highest rate

_SET_BITRATE, _SET_COMPLEXITY, _GET_LOOKAHEAD, _SET_GAIN = 4002, 4010, 4027, 4034  # opus_defines.h

_opus = ctypes.CDLL(opuslib_next.api.libopus._name)  # a handle of our own: signatures belong to the handle


def _function(name: str, result: type | None, *arguments: type) -> Callable[..., Any]:
    function = getattr(_opus, name)
    function.restype, function.argtypes = result, arguments
    return cast(Callable[..., Any], function)


_POINTER, _INT, _INT32 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int32
_create_encoder = _function("opus_encoder_create", _POINTER, _INT32, _INT, _INT, ctypes.POINTER(_INT))
_destroy_encoder = _function("opus_encoder_destroy", None, _POINTER)
_encode = _function("opus_encode_float", _INT32, _POINTER, _POINTER, _INT, _POINTER, _INT32)
_create_decoder = _function("opus_decoder_create", _POINTER, _INT32, _INT, ctypes.POINTER(_INT))
_destroy_decoder = _function("opus_decoder_destroy", None, _POINTER)
_decode = _function("opus_decode_float", _INT, _POINTER, ctypes.c_char_p, _INT32, _POINTER, _INT, _INT)
_samples_of = _function("opus_packet_get_nb_samples", _INT, ctypes.c_char_p, _INT32, _INT32)
_error_text = _function("opus_strerror", ctypes.c_char_p, _INT)
# Variadic: on some machines an argument beyond the named ones goes another way, so only those are declared.
_control_encoder = _function("opus_encoder_ctl", _INT, _POINTER, _INT)
_control_decoder = _function("opus_decoder_ctl", _INT, _POINTER, _INT)


class OpusEncoder:
    """One stream of packets from samples."""

    def __init__(self, sample_rate_hertz: int) -> None:
        """The rate is one of CODED_HERTZ; decoders may choose another."""
        error = _INT()
        self._encoder = _create_encoder(sample_rate_hertz, 1, _APPLICATION_RESTRICTED_LOWDELAY, ctypes.byref(error))
        _check_own(error.value)
        weakref.finalize(self, _destroy_encoder, self._encoder)
        _check_own(_control_encoder(self._encoder, _SET_BITRATE, _INT32(_BITS_PER_S)))
        _check_own(_control_encoder(self._encoder, _SET_COMPLEXITY, _INT32(_COMPLEXITY)))
        self._packet = ctypes.create_string_buffer(_MOST_ENCODED_BYTES)

    @property
    def lookahead(self) -> int:
        """Samples by which what a decoder gives is late."""
        samples = _INT32()
        _check_own(_control_encoder(self._encoder, _GET_LOOKAHEAD, ctypes.byref(samples)))
        return samples.value

    def encode(self, pcm: Pcm) -> bytes:
        """A packet of these samples, float32 [samples]: 2.5, 5, 10, 20, 40, 60 or 80 ms. Too loud ones are clipped."""
        pcm = np.ascontiguousarray(pcm, dtype=np.float32)
        length = _encode(self._encoder, pcm.ctypes.data, len(pcm), self._packet, _MOST_ENCODED_BYTES)
        _check_own(length)
        return self._packet.raw[:length]


class OpusDecoder:
    """Samples from one stream of packets, which may have any rate, and one or two channels."""

    def __init__(self, sample_rate_hertz: int, gain: int = 0) -> None:
        """The rate is one of CODED_HERTZ; `gain` is in 1/256 dB, -32768 to 32767."""
        error = _INT()
        self._decoder = _create_decoder(sample_rate_hertz, 1, ctypes.byref(error))
        _check_own(error.value)
        weakref.finalize(self, _destroy_decoder, self._decoder)
        if gain:
            _check_own(_control_decoder(self._decoder, _SET_GAIN, _INT32(gain)))
        self._most_samples = sample_rate_hertz * MOST_PACKET_MS // 1000
        self._pcm: Pcm = np.empty(self._most_samples, dtype=np.float32)

    def decode(self, packet: bytes) -> Pcm:
        """A packet's samples, float32 [samples], 120 ms at most. Raises InvalidRequest when it is not a packet."""
        if not packet:  # to libopus it would be a lost one
            raise _bad("an Opus packet is empty")
        samples = _decode(self._decoder, packet, len(packet), self._pcm.ctypes.data, self._most_samples, 0)
        if samples < 0:
            raise _bad(f"a packet is not Opus: {_error_text(samples).decode()}")
        return self._pcm[:samples].copy()


def packet_ms(packet: bytes) -> float:
    """How long a packet's sound is, 2.5 to 120 ms, without decoding it. Raises InvalidRequest when it is not a packet.
    """
    samples: int = _samples_of(packet, len(packet), 48_000)
    if samples <= 0:
        raise _bad("a packet is not Opus")
    return samples / 48


def _bad(message: str) -> InvalidRequest:
    return InvalidRequest("BAD_OPUS", message, field="audio", accepted="Opus packets")


def _check_own(result: int) -> None:
    """Raise for what only we can have done wrong."""
    if result < 0:
        raise ValueError(f"libopus: {_error_text(result).decode()}")
