from moshimesh.lm.v1 import lm_pb2 as _lm_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Facts(_message.Message):
    __slots__ = ("format_version", "session_id", "model_id", "user_codebooks", "own_codebooks", "delay_frames", "context_frames", "sampling", "codec_id", "prompt")
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    USER_CODEBOOKS_FIELD_NUMBER: _ClassVar[int]
    OWN_CODEBOOKS_FIELD_NUMBER: _ClassVar[int]
    DELAY_FRAMES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FRAMES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    CODEC_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    session_id: str
    model_id: str
    user_codebooks: int
    own_codebooks: int
    delay_frames: int
    context_frames: int
    sampling: _lm_pb2.Sampling
    codec_id: str
    prompt: _lm_pb2.StepPrompt
    def __init__(self, format_version: _Optional[int] = ..., session_id: _Optional[str] = ..., model_id: _Optional[str] = ..., user_codebooks: _Optional[int] = ..., own_codebooks: _Optional[int] = ..., delay_frames: _Optional[int] = ..., context_frames: _Optional[int] = ..., sampling: _Optional[_Union[_lm_pb2.Sampling, _Mapping]] = ..., codec_id: _Optional[str] = ..., prompt: _Optional[_Union[_lm_pb2.StepPrompt, _Mapping]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("format_version", "age_ms", "first_step", "first_sequence", "user_codes", "tokens", "skipped", "controls")
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    USER_CODES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    age_ms: int
    first_step: int
    first_sequence: int
    user_codes: bytes
    tokens: bytes
    skipped: _containers.RepeatedCompositeFieldContainer[SkippedFrames]
    controls: _containers.RepeatedCompositeFieldContainer[_lm_pb2.StepControlsAt]
    def __init__(self, format_version: _Optional[int] = ..., age_ms: _Optional[int] = ..., first_step: _Optional[int] = ..., first_sequence: _Optional[int] = ..., user_codes: _Optional[bytes] = ..., tokens: _Optional[bytes] = ..., skipped: _Optional[_Iterable[_Union[SkippedFrames, _Mapping]]] = ..., controls: _Optional[_Iterable[_Union[_lm_pb2.StepControlsAt, _Mapping]]] = ...) -> None: ...

class SkippedFrames(_message.Message):
    __slots__ = ("step", "frames")
    STEP_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    step: int
    frames: int
    def __init__(self, step: _Optional[int] = ..., frames: _Optional[int] = ...) -> None: ...
