from moshimesh.audio.v1 import audio_pb2 as _audio_pb2
from moshimesh.lm.v1 import lm_pb2 as _lm_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Pacing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PACING_UNSPECIFIED: _ClassVar[Pacing]
    PACING_LIVE: _ClassVar[Pacing]
    PACING_OFFLINE: _ClassVar[Pacing]

class EventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_KIND_UNSPECIFIED: _ClassVar[EventKind]
    EVENT_KIND_USER_SPEECH_STARTED: _ClassVar[EventKind]
    EVENT_KIND_USER_SPEECH_STOPPED: _ClassVar[EventKind]
    EVENT_KIND_MODEL_SPEECH_STARTED: _ClassVar[EventKind]
    EVENT_KIND_MODEL_SPEECH_STOPPED: _ClassVar[EventKind]
    EVENT_KIND_OVERLAP_BEGUN: _ClassVar[EventKind]
    EVENT_KIND_OVERLAP_ENDED: _ClassVar[EventKind]
    EVENT_KIND_INTERRUPTED: _ClassVar[EventKind]
    EVENT_KIND_BACK_CHANNEL: _ClassVar[EventKind]
PACING_UNSPECIFIED: Pacing
PACING_LIVE: Pacing
PACING_OFFLINE: Pacing
EVENT_KIND_UNSPECIFIED: EventKind
EVENT_KIND_USER_SPEECH_STARTED: EventKind
EVENT_KIND_USER_SPEECH_STOPPED: EventKind
EVENT_KIND_MODEL_SPEECH_STARTED: EventKind
EVENT_KIND_MODEL_SPEECH_STOPPED: EventKind
EVENT_KIND_OVERLAP_BEGUN: EventKind
EVENT_KIND_OVERLAP_ENDED: EventKind
EVENT_KIND_INTERRUPTED: EventKind
EVENT_KIND_BACK_CHANNEL: EventKind

class GrantRequest(_message.Message):
    __slots__ = ("resume_handle", "lives_ms")
    RESUME_HANDLE_FIELD_NUMBER: _ClassVar[int]
    LIVES_MS_FIELD_NUMBER: _ClassVar[int]
    resume_handle: str
    lives_ms: int
    def __init__(self, resume_handle: _Optional[str] = ..., lives_ms: _Optional[int] = ...) -> None: ...

class GrantResponse(_message.Message):
    __slots__ = ("grant", "expires_unix_ms")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    grant: str
    expires_unix_ms: int
    def __init__(self, grant: _Optional[str] = ..., expires_unix_ms: _Optional[int] = ...) -> None: ...

class ListenRequest(_message.Message):
    __slots__ = ("grant", "encoding", "without_audio")
    GRANT_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_AUDIO_FIELD_NUMBER: _ClassVar[int]
    grant: str
    encoding: _audio_pb2.AudioEncoding
    without_audio: bool
    def __init__(self, grant: _Optional[str] = ..., encoding: _Optional[_Union[_audio_pb2.AudioEncoding, str]] = ..., without_audio: bool = ...) -> None: ...

class Listening(_message.Message):
    __slots__ = ("session_id", "model_id", "codec_id", "sample_rate_hertz", "samples_per_frame", "delay_frames")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    CODEC_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_HERTZ_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_FRAME_FIELD_NUMBER: _ClassVar[int]
    DELAY_FRAMES_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model_id: str
    codec_id: str
    sample_rate_hertz: int
    samples_per_frame: int
    delay_frames: int
    def __init__(self, session_id: _Optional[str] = ..., model_id: _Optional[str] = ..., codec_id: _Optional[str] = ..., sample_rate_hertz: _Optional[int] = ..., samples_per_frame: _Optional[int] = ..., delay_frames: _Optional[int] = ...) -> None: ...

class UserFrame(_message.Message):
    __slots__ = ("sequence", "pcm")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PCM_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    pcm: bytes
    def __init__(self, sequence: _Optional[int] = ..., pcm: _Optional[bytes] = ...) -> None: ...

class Missed(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: int
    def __init__(self, messages: _Optional[int] = ...) -> None: ...

class CallOver(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ListenResponse(_message.Message):
    __slots__ = ("listening", "user", "speech", "event", "missed", "over")
    LISTENING_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    SPEECH_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    listening: Listening
    user: UserFrame
    speech: SpeechFrame
    event: ConversationEvent
    missed: Missed
    over: CallOver
    def __init__(self, listening: _Optional[_Union[Listening, _Mapping]] = ..., user: _Optional[_Union[UserFrame, _Mapping]] = ..., speech: _Optional[_Union[SpeechFrame, _Mapping]] = ..., event: _Optional[_Union[ConversationEvent, _Mapping]] = ..., missed: _Optional[_Union[Missed, _Mapping]] = ..., over: _Optional[_Union[CallOver, _Mapping]] = ...) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("resume_handle",)
    RESUME_HANDLE_FIELD_NUMBER: _ClassVar[int]
    resume_handle: str
    def __init__(self, resume_handle: _Optional[str] = ...) -> None: ...

class ForgetResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("resume_handle", "from_step")
    RESUME_HANDLE_FIELD_NUMBER: _ClassVar[int]
    FROM_STEP_FIELD_NUMBER: _ClassVar[int]
    resume_handle: str
    from_step: int
    def __init__(self, resume_handle: _Optional[str] = ..., from_step: _Optional[int] = ...) -> None: ...

class RecordedSteps(_message.Message):
    __slots__ = ("first_step", "sequences", "user_codes", "tokens", "controls")
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    USER_CODES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    first_step: int
    sequences: _containers.RepeatedScalarFieldContainer[int]
    user_codes: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    controls: _containers.RepeatedCompositeFieldContainer[_lm_pb2.StepControlsAt]
    def __init__(self, first_step: _Optional[int] = ..., sequences: _Optional[_Iterable[int]] = ..., user_codes: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[int]] = ..., controls: _Optional[_Iterable[_Union[_lm_pb2.StepControlsAt, _Mapping]]] = ...) -> None: ...

class ExportResponse(_message.Message):
    __slots__ = ("model_id", "codec_id", "user_codebooks", "own_codebooks", "delay_frames", "context_frames", "sampling", "steps", "prompt")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    CODEC_ID_FIELD_NUMBER: _ClassVar[int]
    USER_CODEBOOKS_FIELD_NUMBER: _ClassVar[int]
    OWN_CODEBOOKS_FIELD_NUMBER: _ClassVar[int]
    DELAY_FRAMES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FRAMES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    codec_id: str
    user_codebooks: int
    own_codebooks: int
    delay_frames: int
    context_frames: int
    sampling: _lm_pb2.Sampling
    steps: RecordedSteps
    prompt: _lm_pb2.StepPrompt
    def __init__(self, model_id: _Optional[str] = ..., codec_id: _Optional[str] = ..., user_codebooks: _Optional[int] = ..., own_codebooks: _Optional[int] = ..., delay_frames: _Optional[int] = ..., context_frames: _Optional[int] = ..., sampling: _Optional[_Union[_lm_pb2.Sampling, _Mapping]] = ..., steps: _Optional[_Union[RecordedSteps, _Mapping]] = ..., prompt: _Optional[_Union[_lm_pb2.StepPrompt, _Mapping]] = ...) -> None: ...

class ReplayConfig(_message.Message):
    __slots__ = ("model", "sampling", "past", "audio", "prompt")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PAST_FIELD_NUMBER: _ClassVar[int]
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    model: str
    sampling: _lm_pb2.Sampling
    past: RecordedSteps
    audio: bool
    prompt: _lm_pb2.StepPrompt
    def __init__(self, model: _Optional[str] = ..., sampling: _Optional[_Union[_lm_pb2.Sampling, _Mapping]] = ..., past: _Optional[_Union[RecordedSteps, _Mapping]] = ..., audio: bool = ..., prompt: _Optional[_Union[_lm_pb2.StepPrompt, _Mapping]] = ...) -> None: ...

class ReplayRequest(_message.Message):
    __slots__ = ("config", "steps")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    config: ReplayConfig
    steps: RecordedSteps
    def __init__(self, config: _Optional[_Union[ReplayConfig, _Mapping]] = ..., steps: _Optional[_Union[RecordedSteps, _Mapping]] = ...) -> None: ...

class ReplayReady(_message.Message):
    __slots__ = ("model_id", "sample_rate_hertz", "delay_frames", "sampling")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_HERTZ_FIELD_NUMBER: _ClassVar[int]
    DELAY_FRAMES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    sample_rate_hertz: int
    delay_frames: int
    sampling: _lm_pb2.Sampling
    def __init__(self, model_id: _Optional[str] = ..., sample_rate_hertz: _Optional[int] = ..., delay_frames: _Optional[int] = ..., sampling: _Optional[_Union[_lm_pb2.Sampling, _Mapping]] = ...) -> None: ...

class ReplayedFrame(_message.Message):
    __slots__ = ("step", "text", "text_token", "codes", "pcm")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    PCM_FIELD_NUMBER: _ClassVar[int]
    step: int
    text: str
    text_token: int
    codes: _containers.RepeatedScalarFieldContainer[int]
    pcm: bytes
    def __init__(self, step: _Optional[int] = ..., text: _Optional[str] = ..., text_token: _Optional[int] = ..., codes: _Optional[_Iterable[int]] = ..., pcm: _Optional[bytes] = ...) -> None: ...

class ReplayResponse(_message.Message):
    __slots__ = ("ready", "frame")
    READY_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    ready: ReplayReady
    frame: ReplayedFrame
    def __init__(self, ready: _Optional[_Union[ReplayReady, _Mapping]] = ..., frame: _Optional[_Union[ReplayedFrame, _Mapping]] = ...) -> None: ...

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetInfoResponse(_message.Message):
    __slots__ = ("model_id", "sample_rate_hertz", "samples_per_frame", "slots_total", "slots_free", "codec_id", "text_prompt_characters")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_HERTZ_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_FRAME_FIELD_NUMBER: _ClassVar[int]
    SLOTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FREE_FIELD_NUMBER: _ClassVar[int]
    CODEC_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_PROMPT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    sample_rate_hertz: int
    samples_per_frame: int
    slots_total: int
    slots_free: int
    codec_id: str
    text_prompt_characters: int
    def __init__(self, model_id: _Optional[str] = ..., sample_rate_hertz: _Optional[int] = ..., samples_per_frame: _Optional[int] = ..., slots_total: _Optional[int] = ..., slots_free: _Optional[int] = ..., codec_id: _Optional[str] = ..., text_prompt_characters: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Model(_message.Message):
    __slots__ = ("model_id", "codec_id", "sample_rate_hertz", "samples_per_frame", "slots_total", "slots_free", "text_prompt_characters")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    CODEC_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_HERTZ_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_FRAME_FIELD_NUMBER: _ClassVar[int]
    SLOTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FREE_FIELD_NUMBER: _ClassVar[int]
    TEXT_PROMPT_CHARACTERS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    codec_id: str
    sample_rate_hertz: int
    samples_per_frame: int
    slots_total: int
    slots_free: int
    text_prompt_characters: int
    def __init__(self, model_id: _Optional[str] = ..., codec_id: _Optional[str] = ..., sample_rate_hertz: _Optional[int] = ..., samples_per_frame: _Optional[int] = ..., slots_total: _Optional[int] = ..., slots_free: _Optional[int] = ..., text_prompt_characters: _Optional[int] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class ListVoicesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Voice(_message.Message):
    __slots__ = ("name", "duration_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    duration_ms: int
    def __init__(self, name: _Optional[str] = ..., duration_ms: _Optional[int] = ...) -> None: ...

class ListVoicesResponse(_message.Message):
    __slots__ = ("voices",)
    VOICES_FIELD_NUMBER: _ClassVar[int]
    voices: _containers.RepeatedCompositeFieldContainer[Voice]
    def __init__(self, voices: _Optional[_Iterable[_Union[Voice, _Mapping]]] = ...) -> None: ...

class ConverseConfig(_message.Message):
    __slots__ = ("sample_rate_hertz", "encoding", "pacing", "sampling", "traceparent", "resume_handle", "first_sequence", "answered_sequence", "model", "voice", "text_prompt", "fork_handle", "past_frames")
    SAMPLE_RATE_HERTZ_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    PACING_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    RESUME_HANDLE_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VOICE_FIELD_NUMBER: _ClassVar[int]
    TEXT_PROMPT_FIELD_NUMBER: _ClassVar[int]
    FORK_HANDLE_FIELD_NUMBER: _ClassVar[int]
    PAST_FRAMES_FIELD_NUMBER: _ClassVar[int]
    sample_rate_hertz: int
    encoding: _audio_pb2.AudioEncoding
    pacing: Pacing
    sampling: _lm_pb2.Sampling
    traceparent: str
    resume_handle: str
    first_sequence: int
    answered_sequence: int
    model: str
    voice: str
    text_prompt: str
    fork_handle: str
    past_frames: int
    def __init__(self, sample_rate_hertz: _Optional[int] = ..., encoding: _Optional[_Union[_audio_pb2.AudioEncoding, str]] = ..., pacing: _Optional[_Union[Pacing, str]] = ..., sampling: _Optional[_Union[_lm_pb2.Sampling, _Mapping]] = ..., traceparent: _Optional[str] = ..., resume_handle: _Optional[str] = ..., first_sequence: _Optional[int] = ..., answered_sequence: _Optional[int] = ..., model: _Optional[str] = ..., voice: _Optional[str] = ..., text_prompt: _Optional[str] = ..., fork_handle: _Optional[str] = ..., past_frames: _Optional[int] = ...) -> None: ...

class AudioChunk(_message.Message):
    __slots__ = ("pcm",)
    PCM_FIELD_NUMBER: _ClassVar[int]
    pcm: bytes
    def __init__(self, pcm: _Optional[bytes] = ...) -> None: ...

class Interrupt(_message.Message):
    __slots__ = ("hold_ms",)
    HOLD_MS_FIELD_NUMBER: _ClassVar[int]
    hold_ms: int
    def __init__(self, hold_ms: _Optional[int] = ...) -> None: ...

class Say(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class PlayedOut(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class Control(_message.Message):
    __slots__ = ("sampling", "interrupt", "say", "played_out")
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    INTERRUPT_FIELD_NUMBER: _ClassVar[int]
    SAY_FIELD_NUMBER: _ClassVar[int]
    PLAYED_OUT_FIELD_NUMBER: _ClassVar[int]
    sampling: _lm_pb2.Sampling
    interrupt: Interrupt
    say: Say
    played_out: PlayedOut
    def __init__(self, sampling: _Optional[_Union[_lm_pb2.Sampling, _Mapping]] = ..., interrupt: _Optional[_Union[Interrupt, _Mapping]] = ..., say: _Optional[_Union[Say, _Mapping]] = ..., played_out: _Optional[_Union[PlayedOut, _Mapping]] = ...) -> None: ...

class ConverseRequest(_message.Message):
    __slots__ = ("config", "audio", "control")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    config: ConverseConfig
    audio: AudioChunk
    control: Control
    def __init__(self, config: _Optional[_Union[ConverseConfig, _Mapping]] = ..., audio: _Optional[_Union[AudioChunk, _Mapping]] = ..., control: _Optional[_Union[Control, _Mapping]] = ...) -> None: ...

class ConverseReady(_message.Message):
    __slots__ = ("session_id", "model_id", "sample_rate_hertz", "samples_per_frame", "codebooks", "delay_frames", "sampling", "resume_handle", "resume_grace_ms", "next_sequence", "priming_frames", "frame_due_us", "codec_id")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_HERTZ_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_FRAME_FIELD_NUMBER: _ClassVar[int]
    CODEBOOKS_FIELD_NUMBER: _ClassVar[int]
    DELAY_FRAMES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    RESUME_HANDLE_FIELD_NUMBER: _ClassVar[int]
    RESUME_GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PRIMING_FRAMES_FIELD_NUMBER: _ClassVar[int]
    FRAME_DUE_US_FIELD_NUMBER: _ClassVar[int]
    CODEC_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model_id: str
    sample_rate_hertz: int
    samples_per_frame: int
    codebooks: int
    delay_frames: int
    sampling: _lm_pb2.Sampling
    resume_handle: str
    resume_grace_ms: int
    next_sequence: int
    priming_frames: int
    frame_due_us: int
    codec_id: str
    def __init__(self, session_id: _Optional[str] = ..., model_id: _Optional[str] = ..., sample_rate_hertz: _Optional[int] = ..., samples_per_frame: _Optional[int] = ..., codebooks: _Optional[int] = ..., delay_frames: _Optional[int] = ..., sampling: _Optional[_Union[_lm_pb2.Sampling, _Mapping]] = ..., resume_handle: _Optional[str] = ..., resume_grace_ms: _Optional[int] = ..., next_sequence: _Optional[int] = ..., priming_frames: _Optional[int] = ..., frame_due_us: _Optional[int] = ..., codec_id: _Optional[str] = ...) -> None: ...

class Queued(_message.Message):
    __slots__ = ("position", "estimated_wait_ms")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    position: int
    estimated_wait_ms: int
    def __init__(self, position: _Optional[int] = ..., estimated_wait_ms: _Optional[int] = ...) -> None: ...

class GoAway(_message.Message):
    __slots__ = ("time_left_ms",)
    TIME_LEFT_MS_FIELD_NUMBER: _ClassVar[int]
    time_left_ms: int
    def __init__(self, time_left_ms: _Optional[int] = ...) -> None: ...

class ResumeStatus(_message.Message):
    __slots__ = ("available",)
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    available: bool
    def __init__(self, available: bool = ...) -> None: ...

class SpeechFrame(_message.Message):
    __slots__ = ("context", "pcm", "text", "text_token", "codes", "frames_skipped")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PCM_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    FRAMES_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    context: _audio_pb2.FrameContext
    pcm: bytes
    text: str
    text_token: int
    codes: _containers.RepeatedScalarFieldContainer[int]
    frames_skipped: int
    def __init__(self, context: _Optional[_Union[_audio_pb2.FrameContext, _Mapping]] = ..., pcm: _Optional[bytes] = ..., text: _Optional[str] = ..., text_token: _Optional[int] = ..., codes: _Optional[_Iterable[int]] = ..., frames_skipped: _Optional[int] = ...) -> None: ...

class ConversationEvent(_message.Message):
    __slots__ = ("kind", "sequence", "at_ms")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    kind: EventKind
    sequence: int
    at_ms: int
    def __init__(self, kind: _Optional[_Union[EventKind, str]] = ..., sequence: _Optional[int] = ..., at_ms: _Optional[int] = ...) -> None: ...

class Heard(_message.Message):
    __slots__ = ("sequence", "text", "unheard")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    UNHEARD_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    text: str
    unheard: str
    def __init__(self, sequence: _Optional[int] = ..., text: _Optional[str] = ..., unheard: _Optional[str] = ...) -> None: ...

class ConverseSummary(_message.Message):
    __slots__ = ("frames_in", "frames_out", "frames_skipped")
    FRAMES_IN_FIELD_NUMBER: _ClassVar[int]
    FRAMES_OUT_FIELD_NUMBER: _ClassVar[int]
    FRAMES_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    frames_in: int
    frames_out: int
    frames_skipped: int
    def __init__(self, frames_in: _Optional[int] = ..., frames_out: _Optional[int] = ..., frames_skipped: _Optional[int] = ...) -> None: ...

class CallEnded(_message.Message):
    __slots__ = ("code", "reason", "message", "metadata", "retry_after_ms")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class ConverseResponse(_message.Message):
    __slots__ = ("ready", "speech", "summary", "queued", "go_away", "resume_status", "ended", "event", "heard")
    READY_FIELD_NUMBER: _ClassVar[int]
    SPEECH_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    GO_AWAY_FIELD_NUMBER: _ClassVar[int]
    RESUME_STATUS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    HEARD_FIELD_NUMBER: _ClassVar[int]
    ready: ConverseReady
    speech: SpeechFrame
    summary: ConverseSummary
    queued: Queued
    go_away: GoAway
    resume_status: ResumeStatus
    ended: CallEnded
    event: ConversationEvent
    heard: Heard
    def __init__(self, ready: _Optional[_Union[ConverseReady, _Mapping]] = ..., speech: _Optional[_Union[SpeechFrame, _Mapping]] = ..., summary: _Optional[_Union[ConverseSummary, _Mapping]] = ..., queued: _Optional[_Union[Queued, _Mapping]] = ..., go_away: _Optional[_Union[GoAway, _Mapping]] = ..., resume_status: _Optional[_Union[ResumeStatus, _Mapping]] = ..., ended: _Optional[_Union[CallEnded, _Mapping]] = ..., event: _Optional[_Union[ConversationEvent, _Mapping]] = ..., heard: _Optional[_Union[Heard, _Mapping]] = ...) -> None: ...
