"""A thin typed client over the generated stubs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import grpc
from moshimesh.aligned import Aligned
from moshimesh.conversation import Conversation
from moshimesh.director import Director
from moshimesh.events import Event, MeshInfo, mesh_error
from moshimesh.gateway.v1 import conversation_pb2, conversation_pb2_grpc
from moshimesh.listening import Listened, listen
from moshimesh.lm.v1 import lm_pb2
from moshimesh.recording import Recording, Replayed
from moshimesh.sent import Sent
from moshimesh.source import PcmFormat, Source

if TYPE_CHECKING:
    from typing_extensions import Buffer  # every type checker knows it; at run time the wheel does not need it

Encoding = Literal["s16", "f32"]
_PACINGS = {"live": conversation_pb2.PACING_LIVE, "offline": conversation_pb2.PACING_OFFLINE}
# A mesh whose network is cut without notice is detected within 15 s.
_CHANNEL = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.http2.ping_timeout_ms", 5_000),
            # A connection without calls is closed before a NAT or a balancer forgets it without a word.
            ("grpc.client_idle_timeout_ms", 240_000),
            # A gateway that was restarted is found again within a second.
            ("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1_000)]


# gRPC itself would take another port for one beyond 65535, and 443 for none.
_HOST_AND_PORT = re.compile(r"(?:[^\s:/\[\];]+|\[[0-9a-fA-F:.%\w]+\]):([0-9]{1,5})")
_OF_GRPC = re.compile(r"(?:dns|ipv4|ipv6|unix|unix-abstract|vsock|xds):")


class Mesh:
    """A connection to the gateways of a mesh; make one with `connect` and share it between calls."""

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._channels = channels
        self._stubs = [conversation_pb2_grpc.ConversationServiceStub(channel) for channel in channels]

    async def info(self, *, api_key: str = "") -> MeshInfo:
        """The model that a conversation gets if it names none. Raises MeshError."""
        metadata = _metadata(api_key)
        return _mesh_info(await self._ask(lambda stub: stub.GetInfo(
            conversation_pb2.GetInfoRequest(), metadata=metadata)))

    async def models(self, *, api_key: str = "") -> list[MeshInfo]:
        """All models that a conversation can have. Raises MeshError."""
        metadata = _metadata(api_key)
        answer = await self._ask(lambda stub: stub.ListModels(conversation_pb2.ListModelsRequest(), metadata=metadata))
        return [_mesh_info(model) for model in answer.models]

    async def voices(self, *, api_key: str = "") -> dict[str, float]:
        """The voices that a conversation can begin with, and how many seconds each recording has. Raises MeshError."""
        metadata = _metadata(api_key)
        answer = await self._ask(lambda stub: stub.ListVoices(conversation_pb2.ListVoicesRequest(), metadata=metadata))
        return {voice.name: voice.duration_ms / 1000 for voice in answer.voices}

    async def export(self, resume_handle: str, *, from_step: int = 0, api_key: str = "") -> Recording:
        """What the mesh keeps of the conversation with this handle (`Ready` has it): its last steps, as tokens.

        Raises MeshError.
        """
        request = conversation_pb2.ExportRequest(resume_handle=resume_handle, from_step=from_step)
        metadata = _metadata(api_key)
        return Recording(await self._ask(lambda stub: stub.Export(request, metadata=metadata)))

    async def forget(self, resume_handle: str, *, api_key: str = "") -> None:
        """End the conversation with this handle, wherever it is held, and erase what the mesh keeps of it.

        Raises MeshError.
        """
        request, metadata = conversation_pb2.ForgetRequest(resume_handle=resume_handle), _metadata(api_key)
        await self._ask(lambda stub: stub.Forget(request, metadata=metadata))

    async def grant(self, resume_handle: str, *, lives_s: float = 900.0, api_key: str = "") -> str:
        """A grant with which others may begin to `listen` to the conversation with this handle, for `lives_s`. It is a
        secret, too, but lets nobody speak, resume or export.

        Raises MeshError.
        """
        request = conversation_pb2.GrantRequest(resume_handle=resume_handle, lives_ms=round(lives_s * 1000))
        metadata = _metadata(api_key)
        answer = await self._ask(lambda stub: stub.Grant(request, metadata=metadata))
        return str(answer.grant)

    async def listen(self, grant: str, *, encoding: Encoding = "s16", audio: bool = True, search_s: float = 10.0,
                     api_key: str = "") -> AsyncIterator[Listened]:
        """Listen to a call that somebody else holds, from now on, at the mesh's own rate.

        Args:
            grant: from `grant`.
            encoding: as for `converse`.
            audio: False for text and events alone.
            search_s: for how long to look for the gateway that holds the call, now and whenever the call has moved.
            api_key: as for `converse`; it need not be that of the call.

        Yields:
            Listening, then a UserFrame and a Speech for each frame with ConversationEvents in between, Missed if this
            listener is too slow, and CallOver.

        Raises MeshError.
        """
        request = conversation_pb2.ListenRequest(grant=grant, encoding=PcmFormat.of(encoding, 24_000).encoding,
                                                 without_audio=not audio)
        items = listen(self._stubs, request, _metadata(api_key), search_s)
        try:
            async for item in items:
                yield item
        finally:
            await items.aclose()

    async def replay(self, recording: Recording, *, model: str = "", sampling: lm_pb2.Sampling | None = None,
                     audio: bool = False, api_key: str = "") -> AsyncIterator[Replayed]:
        """Step a recording again, as fast as it goes.

        Args:
            recording: from `export`, or a file.
            model: empty for the one that it was held with.
            sampling: None for that of the recording, which gives the same tokens again.
            audio: whether to make audio, too.
            api_key: as for `converse`.

        Raises MeshError.
        """
        config = conversation_pb2.ReplayConfig(model=model or recording.model_id, audio=audio, past=recording.past(),
                                               prompt=recording.prompt,
                                               sampling=recording.sampling if sampling is None else sampling)

        async def requests() -> AsyncIterator[conversation_pb2.ReplayRequest]:
            yield conversation_pb2.ReplayRequest(config=config)
            for steps in recording.messages():
                yield conversation_pb2.ReplayRequest(steps=steps)

        call = self._stubs[0].Replay(requests(), metadata=_metadata(api_key))
        try:
            async for response in call:
                if response.HasField("frame"):
                    frame = response.frame
                    token = frame.text_token if frame.HasField("text_token") else None
                    yield Replayed(frame.step, frame.text, token, tuple(frame.codes), frame.pcm)
        except grpc.aio.AioRpcError as error:
            raise mesh_error(error) from None
        finally:
            call.cancel()

    async def _ask(self, method: Callable[[conversation_pb2_grpc.ConversationServiceStub], Awaitable[Any]]) -> Any:
        """The answer of the first gateway that can be reached. Raises MeshError."""
        *others, last = self._stubs
        for stub in others:
            try:
                return await method(stub)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise mesh_error(error) from None
        try:
            return await method(last)
        except grpc.aio.AioRpcError as error:
            raise mesh_error(error) from None

    async def converse(
        self,
        pcm: Buffer | AsyncIterable[Buffer],
        *,
        encoding: Encoding = "s16",
        pacing: Literal["live", "offline"] = "live",
        sample_rate_hertz: int = 24_000,
        model: str = "",
        voice: str = "",
        text_prompt: str = "",
        director: Director | None = None,
        fork: str = "",
        text_temperature: float | None = None,
        text_top_k: int | None = None,
        audio_temperature: float | None = None,
        audio_top_k: int | None = None,
        seed: int | None = None,
        traceparent: str = "",
        api_key: str = "",
        resume_s: float = 30.0,
        align: bool = False,
    ) -> AsyncIterator[Event]:
        """Hold a conversation. One that is cut off, or whose gateway stops, goes on at the next gateway.

        Args:
            pcm: mono audio: a whole recording, as bytes or anything else with the buffer protocol, or an async iterable
                of such pieces, up to 1 s each. The conversation ends when it ends. Arrays must have items of the
                encoding's type (int16 or float32) in one dimension. The first piece is asked for when the conversation
                is open.
            encoding: layout of the samples in both directions: 16 bit integers or 32 bit floats, little endian.
            pacing: "live" for a person: pieces are sent when they come, a recording at the speed of speech, and the
                mesh skips audio when it is late. "offline" for a file: as fast as it goes, and nothing is skipped.
            sample_rate_hertz: must equal the mesh's, see `info`.
            model: the `model_id` of one of `models`; empty takes the one with the most free slots.
            voice: a voice that the mesh knows by this name; empty for the model's own.
            text_prompt: what the model is told before it hears the first frame.
            director: directs the conversation while it goes on; one for each conversation.
            fork: the `resume_handle` of another conversation, whose copy this one is from its last half second on; the
                other one does not notice. The audio to come goes on where that one's had come to, in whole frames.
            text_temperature, text_top_k, audio_temperature, audio_top_k, seed: how the model draws its tokens;
                temperature 0 is greedy; None takes the model's default.
            traceparent: W3C trace context under which the session's span is put.
            api_key: names the caller to a mesh that limits calls per key; spaces and line ends around it don't count.
            resume_s: how long to try to resume a call that was cut off, within the mesh's own grace time; 0: never.
            align: for a microphone that hands out pieces of a few ms: begin with less than a frame of silence, so that
                frames are complete when the mesh would like to have them and share steps with those of other callers.

        Yields:
            Ready first (Queued before it, when the mesh is full), then one Speech for each frame, then a Summary.
            Resumed and ResumeStatus tell what happened in between.

        Raises:
            MeshError: the mesh refused or ended the call, or the call was cut off and could not be resumed.
            TypeError: `pcm`, or a piece of it, is not audio.
            ValueError: an argument that can't be sent.
            Exception: whatever `pcm` raises.
        """
        if pacing not in _PACINGS:
            raise ValueError(f"pacing must be 'live' or 'offline', got {pacing!r}")
        pcm_format = PcmFormat.of(encoding, sample_rate_hertz)
        source = Source(pcm, pcm_format, pacing == "live")
        metadata = _metadata(api_key)
        sampling = lm_pb2.Sampling(text_temperature=text_temperature, text_top_k=text_top_k,
                                   audio_temperature=audio_temperature, audio_top_k=audio_top_k, seed=seed)
        config = conversation_pb2.ConverseConfig(
            sample_rate_hertz=sample_rate_hertz, encoding=pcm_format.encoding, pacing=_PACINGS[pacing],
            sampling=sampling, traceparent=traceparent, model=model,
            voice=voice, text_prompt=text_prompt, fork_handle=fork)
        pieces, on_ready = source.pieces(), None
        if align:
            aligned = Aligned(pieces, pcm_format.sample_bytes, pcm_format.bytes_per_second)
            pieces, on_ready = aligned.frames(), aligned.open
        events = Conversation(self._stubs, config, source, Sent(pieces, pcm_format), director or Director(),
                              pcm_format.sample_bytes, metadata, resume_s,
                              lambda gateway: self._channels[gateway].get_state(try_to_connect=True), on_ready).events()
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()


@contextlib.asynccontextmanager
async def connect(target: str, *, credentials: grpc.ChannelCredentials | None = None, connect_s: float = 3.0
                  ) -> AsyncIterator[Mesh]:
    """Connect to a gateway at host:port, or to several separated by commas: a call whose gateway is lost goes on at the
    next one. In plain text unless credentials are given: `grpc.ssl_channel_credentials()` for certificates of public
    CAs, `grpc.ssl_channel_credentials(pem_of_a_ca)` for a CA of your own.

    A gateway that does not answer within `connect_s` counts as lost. Names that gRPC resolves itself (dns:, unix:, ...)
    are taken as they are. Raises ValueError when no address is named, or one that is none.
    """
    addresses = [address for address in map(str.strip, target.split(",")) if address]
    odd = [address for address in addresses if not _OF_GRPC.match(address) and not _is_host_and_port(address)]
    if odd or not addresses:
        raise ValueError("target must name a gateway as host:port, or several separated by commas, got "
                         f"{odd[0] if odd else target!r}")
    # Despite its name, this is how long gRPC lets an attempt to connect take; by itself 20 s.
    options = [*_CHANNEL, ("grpc.min_reconnect_backoff_ms", round(connect_s * 1000))]
    async with contextlib.AsyncExitStack() as open_channels:
        channels = [grpc.aio.secure_channel(address, credentials, options=options) if credentials
                    else grpc.aio.insecure_channel(address, options=options) for address in addresses]
        for channel in channels:
            await open_channels.enter_async_context(channel)
        yield Mesh(channels)


def _mesh_info(facts: conversation_pb2.GetInfoResponse | conversation_pb2.Model) -> MeshInfo:
    return MeshInfo(facts.model_id, facts.codec_id, facts.sample_rate_hertz, facts.samples_per_frame, facts.slots_total,
                    facts.slots_free)


def _is_host_and_port(address: str) -> bool:
    found = _HOST_AND_PORT.fullmatch(address)
    return found is not None and 0 < int(found[1]) < 65536


def _metadata(api_key: str) -> tuple[tuple[str, str], ...]:
    """The key as gRPC metadata. Raises TypeError and ValueError, which do not show the key."""
    if not isinstance(api_key, str):  # such as None, from a variable that is not set
        raise TypeError(f"api_key must be a str, empty for none, got {type(api_key).__name__}")
    key = api_key.strip()  # a key that was read from a file ends with a line end
    if not all(" " <= character <= "~" for character in key):
        raise ValueError("api_key may only have printable ASCII characters and no line ends in between")
    return (("x-api-key", key),) if key else ()
