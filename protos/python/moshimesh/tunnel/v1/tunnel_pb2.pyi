from moshimesh.audio.v1 import audio_pb2 as _audio_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Nothing(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Keep(_message.Message):
    __slots__ = ("traceparent", "sequence", "hop", "began_unix_nanos", "clock_offset_nanos", "clock_uncertain")
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HOP_FIELD_NUMBER: _ClassVar[int]
    BEGAN_UNIX_NANOS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_OFFSET_NANOS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_UNCERTAIN_FIELD_NUMBER: _ClassVar[int]
    traceparent: str
    sequence: int
    hop: _audio_pb2.Hop
    began_unix_nanos: int
    clock_offset_nanos: int
    clock_uncertain: bool
    def __init__(self, traceparent: _Optional[str] = ..., sequence: _Optional[int] = ..., hop: _Optional[_Union[_audio_pb2.Hop, str]] = ..., began_unix_nanos: _Optional[int] = ..., clock_offset_nanos: _Optional[int] = ..., clock_uncertain: bool = ...) -> None: ...

class RequestItem(_message.Message):
    __slots__ = ("call", "open", "message", "half_close", "cancel", "keep")
    CALL_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HALF_CLOSE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    call: int
    open: str
    message: bytes
    half_close: Nothing
    cancel: Nothing
    keep: Keep
    def __init__(self, call: _Optional[int] = ..., open: _Optional[str] = ..., message: _Optional[bytes] = ..., half_close: _Optional[_Union[Nothing, _Mapping]] = ..., cancel: _Optional[_Union[Nothing, _Mapping]] = ..., keep: _Optional[_Union[Keep, _Mapping]] = ...) -> None: ...

class TunnelRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[RequestItem]
    def __init__(self, items: _Optional[_Iterable[_Union[RequestItem, _Mapping]]] = ...) -> None: ...

class CallEnd(_message.Message):
    __slots__ = ("code", "message", "details")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    details: bytes
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., details: _Optional[bytes] = ...) -> None: ...

class ResponseItem(_message.Message):
    __slots__ = ("call", "message", "end")
    CALL_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    call: int
    message: bytes
    end: CallEnd
    def __init__(self, call: _Optional[int] = ..., message: _Optional[bytes] = ..., end: _Optional[_Union[CallEnd, _Mapping]] = ...) -> None: ...

class TunnelResponse(_message.Message):
    __slots__ = ("items", "draining")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ResponseItem]
    draining: bool
    def __init__(self, items: _Optional[_Iterable[_Union[ResponseItem, _Mapping]]] = ..., draining: bool = ...) -> None: ...
