from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AudioEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIO_ENCODING_UNSPECIFIED: _ClassVar[AudioEncoding]
    AUDIO_ENCODING_PCM_F32LE: _ClassVar[AudioEncoding]
    AUDIO_ENCODING_PCM_S16LE: _ClassVar[AudioEncoding]

class Hop(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HOP_UNSPECIFIED: _ClassVar[Hop]
    HOP_GATEWAY_INGEST: _ClassVar[Hop]
    HOP_CODEC_ENCODE: _ClassVar[Hop]
    HOP_LM_STEP: _ClassVar[Hop]
    HOP_CODEC_DECODE: _ClassVar[Hop]
    HOP_GATEWAY_EMIT: _ClassVar[Hop]
AUDIO_ENCODING_UNSPECIFIED: AudioEncoding
AUDIO_ENCODING_PCM_F32LE: AudioEncoding
AUDIO_ENCODING_PCM_S16LE: AudioEncoding
HOP_UNSPECIFIED: Hop
HOP_GATEWAY_INGEST: Hop
HOP_CODEC_ENCODE: Hop
HOP_LM_STEP: Hop
HOP_CODEC_DECODE: Hop
HOP_GATEWAY_EMIT: Hop

class HopTiming(_message.Message):
    __slots__ = ("hop", "received_unix_nanos", "dequeued_unix_nanos", "started_unix_nanos", "finished_unix_nanos", "batch_size", "tick", "sent_unix_nanos", "returned_unix_nanos")
    HOP_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    DEQUEUED_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    TICK_FIELD_NUMBER: _ClassVar[int]
    SENT_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    RETURNED_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    hop: Hop
    received_unix_nanos: int
    dequeued_unix_nanos: int
    started_unix_nanos: int
    finished_unix_nanos: int
    batch_size: int
    tick: int
    sent_unix_nanos: int
    returned_unix_nanos: int
    def __init__(self, hop: _Optional[_Union[Hop, str]] = ..., received_unix_nanos: _Optional[int] = ..., dequeued_unix_nanos: _Optional[int] = ..., started_unix_nanos: _Optional[int] = ..., finished_unix_nanos: _Optional[int] = ..., batch_size: _Optional[int] = ..., tick: _Optional[int] = ..., sent_unix_nanos: _Optional[int] = ..., returned_unix_nanos: _Optional[int] = ...) -> None: ...

class FrameContext(_message.Message):
    __slots__ = ("sequence", "traceparent", "capture_unix_nanos", "hops")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    HOPS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    traceparent: str
    capture_unix_nanos: int
    hops: _containers.RepeatedCompositeFieldContainer[HopTiming]
    def __init__(self, sequence: _Optional[int] = ..., traceparent: _Optional[str] = ..., capture_unix_nanos: _Optional[int] = ..., hops: _Optional[_Iterable[_Union[HopTiming, _Mapping]]] = ...) -> None: ...

class PcmFrame(_message.Message):
    __slots__ = ("context", "pcm")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PCM_FIELD_NUMBER: _ClassVar[int]
    context: FrameContext
    pcm: bytes
    def __init__(self, context: _Optional[_Union[FrameContext, _Mapping]] = ..., pcm: _Optional[bytes] = ...) -> None: ...

class CodeFrame(_message.Message):
    __slots__ = ("context", "codes")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    context: FrameContext
    codes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, context: _Optional[_Union[FrameContext, _Mapping]] = ..., codes: _Optional[_Iterable[int]] = ...) -> None: ...
