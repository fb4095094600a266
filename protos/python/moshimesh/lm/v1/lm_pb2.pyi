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
    __slots__ = ("model_id", "user_codebooks", "own_codebooks", "cardinality", "text_cardinality", "delay_frames", "context_frames", "slots_total", "slots_free", "weights_bytes", "kv_bytes_per_frame", "draining", "codec_id", "instance_id", "precision", "kv_precision", "floor_ms", "text_prompt_characters")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    USER_CODEBOOKS_FIELD_NUMBER: _ClassVar[int]
    OWN_CODEBOOKS_FIELD_NUMBER: _ClassVar[int]
    CARDINALITY_FIELD_NUMBER: _ClassVar[int]
    TEXT_CARDINALITY_FIELD_NUMBER: _ClassVar[int]
    DELAY_FRAMES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FRAMES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FREE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_FRAME_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    CODEC_ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    KV_PRECISION_FIELD_NUMBER: _ClassVar[int]
    FLOOR_MS_FIELD_NUMBER: _ClassVar[int]
    TEXT_PROMPT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    user_codebooks: int
    own_codebooks: int
    cardinality: int
    text_cardinality: int
    delay_frames: int
    context_frames: int
    slots_total: int
    slots_free: int
    weights_bytes: int
    kv_bytes_per_frame: int
    draining: bool
    codec_id: str
    instance_id: str
    precision: str
    kv_precision: str
    floor_ms: float
    text_prompt_characters: int
    def __init__(self, model_id: _Optional[str] = ..., user_codebooks: _Optional[int] = ..., own_codebooks: _Optional[int] = ..., cardinality: _Optional[int] = ..., text_cardinality: _Optional[int] = ..., delay_frames: _Optional[int] = ..., context_frames: _Optional[int] = ..., slots_total: _Optional[int] = ..., slots_free: _Optional[int] = ..., weights_bytes: _Optional[int] = ..., kv_bytes_per_frame: _Optional[int] = ..., draining: bool = ..., codec_id: _Optional[str] = ..., instance_id: _Optional[str] = ..., precision: _Optional[str] = ..., kv_precision: _Optional[str] = ..., floor_ms: _Optional[float] = ..., text_prompt_characters: _Optional[int] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("text_temperature", "text_top_k", "audio_temperature", "audio_top_k", "seed", "padding_bonus", "repetition_penalty", "repetition_penalty_context")
    TEXT_TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TEXT_TOP_K_FIELD_NUMBER: _ClassVar[int]
    AUDIO_TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    AUDIO_TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PADDING_BONUS_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    text_temperature: float
    text_top_k: int
    audio_temperature: float
    audio_top_k: int
    seed: int
    padding_bonus: float
    repetition_penalty: float
    repetition_penalty_context: int
    def __init__(self, text_temperature: _Optional[float] = ..., text_top_k: _Optional[int] = ..., audio_temperature: _Optional[float] = ..., audio_top_k: _Optional[int] = ..., seed: _Optional[int] = ..., padding_bonus: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., repetition_penalty_context: _Optional[int] = ...) -> None: ...

class StepConfig(_message.Message):
    __slots__ = ("session_id", "sampling", "history", "prompt")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    sampling: Sampling
    history: StepHistory
    prompt: StepPrompt
    def __init__(self, session_id: _Optional[str] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., history: _Optional[_Union[StepHistory, _Mapping]] = ..., prompt: _Optional[_Union[StepPrompt, _Mapping]] = ...) -> None: ...

class StepPrompt(_message.Message):
    __slots__ = ("text", "voice_codes", "silence_codes")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    VOICE_CODES_FIELD_NUMBER: _ClassVar[int]
    SILENCE_CODES_FIELD_NUMBER: _ClassVar[int]
    text: str
    voice_codes: _containers.RepeatedScalarFieldContainer[int]
    silence_codes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, text: _Optional[str] = ..., voice_codes: _Optional[_Iterable[int]] = ..., silence_codes: _Optional[_Iterable[int]] = ...) -> None: ...

class StepHistory(_message.Message):
    __slots__ = ("first_step", "user_codes", "tokens", "controls")
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    USER_CODES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    first_step: int
    user_codes: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    controls: _containers.RepeatedCompositeFieldContainer[StepControlsAt]
    def __init__(self, first_step: _Optional[int] = ..., user_codes: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[int]] = ..., controls: _Optional[_Iterable[_Union[StepControlsAt, _Mapping]]] = ...) -> None: ...

class ForcedTokens(_message.Message):
    __slots__ = ("text_token", "codes", "frames")
    TEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    text_token: int
    codes: _containers.RepeatedScalarFieldContainer[int]
    frames: int
    def __init__(self, text_token: _Optional[int] = ..., codes: _Optional[_Iterable[int]] = ..., frames: _Optional[int] = ...) -> None: ...

class Say(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class StepControls(_message.Message):
    __slots__ = ("sampling", "forced", "say")
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    FORCED_FIELD_NUMBER: _ClassVar[int]
    SAY_FIELD_NUMBER: _ClassVar[int]
    sampling: Sampling
    forced: ForcedTokens
    say: Say
    def __init__(self, sampling: _Optional[_Union[Sampling, _Mapping]] = ..., forced: _Optional[_Union[ForcedTokens, _Mapping]] = ..., say: _Optional[_Union[Say, _Mapping]] = ...) -> None: ...

class StepControlsAt(_message.Message):
    __slots__ = ("step", "controls")
    STEP_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    step: int
    controls: StepControls
    def __init__(self, step: _Optional[int] = ..., controls: _Optional[_Union[StepControls, _Mapping]] = ...) -> None: ...

class StepInput(_message.Message):
    __slots__ = ("frame", "controls")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    frame: _audio_pb2.CodeFrame
    controls: StepControls
    def __init__(self, frame: _Optional[_Union[_audio_pb2.CodeFrame, _Mapping]] = ..., controls: _Optional[_Union[StepControls, _Mapping]] = ...) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("config", "step")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    config: StepConfig
    step: StepInput
    def __init__(self, config: _Optional[_Union[StepConfig, _Mapping]] = ..., step: _Optional[_Union[StepInput, _Mapping]] = ...) -> None: ...

class StepReady(_message.Message):
    __slots__ = ("model_id", "user_codebooks", "own_codebooks", "cardinality", "delay_frames", "sampling", "context_frames", "codec_id", "silent_text_tokens")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    USER_CODEBOOKS_FIELD_NUMBER: _ClassVar[int]
    OWN_CODEBOOKS_FIELD_NUMBER: _ClassVar[int]
    CARDINALITY_FIELD_NUMBER: _ClassVar[int]
    DELAY_FRAMES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FRAMES_FIELD_NUMBER: _ClassVar[int]
    CODEC_ID_FIELD_NUMBER: _ClassVar[int]
    SILENT_TEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    user_codebooks: int
    own_codebooks: int
    cardinality: int
    delay_frames: int
    sampling: Sampling
    context_frames: int
    codec_id: str
    silent_text_tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model_id: _Optional[str] = ..., user_codebooks: _Optional[int] = ..., own_codebooks: _Optional[int] = ..., cardinality: _Optional[int] = ..., delay_frames: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., context_frames: _Optional[int] = ..., codec_id: _Optional[str] = ..., silent_text_tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class StepFrame(_message.Message):
    __slots__ = ("frame", "text_token", "text")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    frame: _audio_pb2.CodeFrame
    text_token: int
    text: str
    def __init__(self, frame: _Optional[_Union[_audio_pb2.CodeFrame, _Mapping]] = ..., text_token: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class StepSummary(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: int
    def __init__(self, frames: _Optional[int] = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ("ready", "step", "summary")
    READY_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    ready: StepReady
    step: StepFrame
    summary: StepSummary
    def __init__(self, ready: _Optional[_Union[StepReady, _Mapping]] = ..., step: _Optional[_Union[StepFrame, _Mapping]] = ..., summary: _Optional[_Union[StepSummary, _Mapping]] = ...) -> None: ...
