from moshimesh.audio.v1 import audio_pb2 as _audio_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetInfoResponse(_message.Message):
    __slots__ = ("codec_id", "sample_rate_hertz", "samples_per_frame", "codebooks", "cardinality", "encode_slots_total", "encode_slots_free", "decode_slots_total", "decode_slots_free", "draining", "priming_frames", "instance_id", "silence_codes")
    CODEC_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_HERTZ_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_FRAME_FIELD_NUMBER: _ClassVar[int]
    CODEBOOKS_FIELD_NUMBER: _ClassVar[int]
    CARDINALITY_FIELD_NUMBER: _ClassVar[int]
    ENCODE_SLOTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ENCODE_SLOTS_FREE_FIELD_NUMBER: _ClassVar[int]
    DECODE_SLOTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    DECODE_SLOTS_FREE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    PRIMING_FRAMES_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    SILENCE_CODES_FIELD_NUMBER: _ClassVar[int]
    codec_id: str
    sample_rate_hertz: int
    samples_per_frame: int
    codebooks: int
    cardinality: int
    encode_slots_total: int
    encode_slots_free: int
    decode_slots_total: int
    decode_slots_free: int
    draining: bool
    priming_frames: int
    instance_id: str
    silence_codes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, codec_id: _Optional[str] = ..., sample_rate_hertz: _Optional[int] = ..., samples_per_frame: _Optional[int] = ..., codebooks: _Optional[int] = ..., cardinality: _Optional[int] = ..., encode_slots_total: _Optional[int] = ..., encode_slots_free: _Optional[int] = ..., decode_slots_total: _Optional[int] = ..., decode_slots_free: _Optional[int] = ..., draining: bool = ..., priming_frames: _Optional[int] = ..., instance_id: _Optional[str] = ..., silence_codes: _Optional[_Iterable[int]] = ...) -> None: ...

class EncodeConfig(_message.Message):
    __slots__ = ("session_id", "reset_after_first_frame", "past_frames", "codebooks")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RESET_AFTER_FIRST_FRAME_FIELD_NUMBER: _ClassVar[int]
    PAST_FRAMES_FIELD_NUMBER: _ClassVar[int]
    CODEBOOKS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    reset_after_first_frame: bool
    past_frames: int
    codebooks: int
    def __init__(self, session_id: _Optional[str] = ..., reset_after_first_frame: bool = ..., past_frames: _Optional[int] = ..., codebooks: _Optional[int] = ...) -> None: ...

class EncodePast(_message.Message):
    __slots__ = ("encoding", "pcm")
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    PCM_FIELD_NUMBER: _ClassVar[int]
    encoding: _audio_pb2.AudioEncoding
    pcm: bytes
    def __init__(self, encoding: _Optional[_Union[_audio_pb2.AudioEncoding, str]] = ..., pcm: _Optional[bytes] = ...) -> None: ...

class EncodeRequest(_message.Message):
    __slots__ = ("config", "frame", "past")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    PAST_FIELD_NUMBER: _ClassVar[int]
    config: EncodeConfig
    frame: _audio_pb2.PcmFrame
    past: EncodePast
    def __init__(self, config: _Optional[_Union[EncodeConfig, _Mapping]] = ..., frame: _Optional[_Union[_audio_pb2.PcmFrame, _Mapping]] = ..., past: _Optional[_Union[EncodePast, _Mapping]] = ...) -> None: ...

class EncodeReady(_message.Message):
    __slots__ = ("codec_id", "sample_rate_hertz", "samples_per_frame", "codebooks", "cardinality", "priming_frames", "frame_phase_us", "speech_table", "silence_codes")
    CODEC_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_HERTZ_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_FRAME_FIELD_NUMBER: _ClassVar[int]
    CODEBOOKS_FIELD_NUMBER: _ClassVar[int]
    CARDINALITY_FIELD_NUMBER: _ClassVar[int]
    PRIMING_FRAMES_FIELD_NUMBER: _ClassVar[int]
    FRAME_PHASE_US_FIELD_NUMBER: _ClassVar[int]
    SPEECH_TABLE_FIELD_NUMBER: _ClassVar[int]
    SILENCE_CODES_FIELD_NUMBER: _ClassVar[int]
    codec_id: str
    sample_rate_hertz: int
    samples_per_frame: int
    codebooks: int
    cardinality: int
    priming_frames: int
    frame_phase_us: int
    speech_table: bytes
    silence_codes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, codec_id: _Optional[str] = ..., sample_rate_hertz: _Optional[int] = ..., samples_per_frame: _Optional[int] = ..., codebooks: _Optional[int] = ..., cardinality: _Optional[int] = ..., priming_frames: _Optional[int] = ..., frame_phase_us: _Optional[int] = ..., speech_table: _Optional[bytes] = ..., silence_codes: _Optional[_Iterable[int]] = ...) -> None: ...

class EncodeSummary(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: int
    def __init__(self, frames: _Optional[int] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("ready", "frame", "summary")
    READY_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    ready: EncodeReady
    frame: _audio_pb2.CodeFrame
    summary: EncodeSummary
    def __init__(self, ready: _Optional[_Union[EncodeReady, _Mapping]] = ..., frame: _Optional[_Union[_audio_pb2.CodeFrame, _Mapping]] = ..., summary: _Optional[_Union[EncodeSummary, _Mapping]] = ...) -> None: ...

class DecodeConfig(_message.Message):
    __slots__ = ("session_id", "priming_codes", "codebooks")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    PRIMING_CODES_FIELD_NUMBER: _ClassVar[int]
    CODEBOOKS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    priming_codes: _containers.RepeatedScalarFieldContainer[int]
    codebooks: int
    def __init__(self, session_id: _Optional[str] = ..., priming_codes: _Optional[_Iterable[int]] = ..., codebooks: _Optional[int] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("config", "frame")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    config: DecodeConfig
    frame: _audio_pb2.CodeFrame
    def __init__(self, config: _Optional[_Union[DecodeConfig, _Mapping]] = ..., frame: _Optional[_Union[_audio_pb2.CodeFrame, _Mapping]] = ...) -> None: ...

class DecodeReady(_message.Message):
    __slots__ = ("codec_id", "sample_rate_hertz", "samples_per_frame", "codebooks", "cardinality", "priming_frames")
    CODEC_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_HERTZ_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_FRAME_FIELD_NUMBER: _ClassVar[int]
    CODEBOOKS_FIELD_NUMBER: _ClassVar[int]
    CARDINALITY_FIELD_NUMBER: _ClassVar[int]
    PRIMING_FRAMES_FIELD_NUMBER: _ClassVar[int]
    codec_id: str
    sample_rate_hertz: int
    samples_per_frame: int
    codebooks: int
    cardinality: int
    priming_frames: int
    def __init__(self, codec_id: _Optional[str] = ..., sample_rate_hertz: _Optional[int] = ..., samples_per_frame: _Optional[int] = ..., codebooks: _Optional[int] = ..., cardinality: _Optional[int] = ..., priming_frames: _Optional[int] = ...) -> None: ...

class DecodeSummary(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: int
    def __init__(self, frames: _Optional[int] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("ready", "frame", "summary")
    READY_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    ready: DecodeReady
    frame: _audio_pb2.PcmFrame
    summary: DecodeSummary
    def __init__(self, ready: _Optional[_Union[DecodeReady, _Mapping]] = ..., frame: _Optional[_Union[_audio_pb2.PcmFrame, _Mapping]] = ..., summary: _Optional[_Union[DecodeSummary, _Mapping]] = ...) -> None: ...
