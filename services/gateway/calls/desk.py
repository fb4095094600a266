"""The front desk of the gateway: every edge holds its callers' conversations through `Desk.hold`.

Draining, limits, the logs' context, trace and meter are done here, once for all edges.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass

from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.callers import Caller, Forked, Input, Opening, Resumed
from services.gateway.calls.conversation import GATEWAY_STOPS, Conversation
from services.gateway.calls.ending import reported
from services.gateway.calls.events import Event
from services.gateway.calls.leaving import ask_to_leave
from services.gateway.calls.limits import Limits
from services.gateway.calls.listening import Listened, Listening
from services.gateway.calls.rates import Rate
from services.gateway.calls.replay import Begun, Past, Recorded, Replay, Replayed
from services.gateway.calls.resources import Resources
from services.gateway.calls.voices import Voice, Voices
from services.gateway.path.observer import Observer, Unheard
from services.gateway.peers.models import Model
from services.gateway.sessions.grants import Grant, make_grant
from services.gateway.sessions.history import BLOCK_STEPS, History
from services.gateway.sessions.records import Record
from services.gateway.sessions.sealing import Handle
from services.mesh import logs
from services.mesh.errors import (
    CallNotHere,
    Draining,
    InvalidRequest,
    ResumeUnavailable,
    TooManyResumes,
    Unauthenticated,
)
from services.mesh.invariants import Violation

log = logging.getLogger(__name__)

MOST_FRAMES = 1 << 24  # of one conversation, 15 days; the language model's positions go no further
INFO_AGE_S = 0.2  # of what `info` says: asking often must not cost the replicas anything
# Resuming costs the rebuilding of three rows. A network that flaps needs some at once, and a client retries within
# seconds. One address may be that of a proxy with many callers, which all come at once when a gateway stops.
RESUMES_PER_HANDLE = (10, 1.0)  # at once, and per second
RESUMES_PER_ADDRESS = (64, 8.0)
INVARIANTS = _ROWS, _SESSIONS, _LINE = "rows", "sessions", "line"
MOST_ROWS_OF_CALL = 6  # an encoder's, the model's, a decoder's; each twice while the call moves


@dataclass(frozen=True)
class ModelInfo:
    """A model that conversations can have, and its room."""

    model_id: str
    codec_id: str
    sample_rate_hertz: int
    samples_per_frame: int
    slots_total: int
    slots_free: int
    text_prompt_characters: int = 0
    """The longest text prompt that it was trained to follow; 0: it was trained without."""


class Desk:
    """Takes every call of this gateway."""

    def __init__(self, resources: Resources, limits: Limits, watch: Callable[[str, Caller, Opening], Observer], *,
                 drain_s: float) -> None:
        """`watch` gives the observer of a call with this id."""
        self._resources, self._limits, self._watch = resources, limits, watch
        self._drain_s = drain_s
        self._draining = False
        self._asking: asyncio.Task[None] | None = None  # the calls to leave
        self._conversations: set[Conversation] = set()
        self._replays = 0
        self._resumes_of_handle, self._resumes_from_address = Rate(*RESUMES_PER_HANDLE), Rate(*RESUMES_PER_ADDRESS)

    async def hold(self, caller: Caller, opening: Opening, inputs: AsyncIterator[Input]) -> AsyncGenerator[Event, None]:
        """A conversation, new or resumed: the mesh's side of it. Raises MeshError."""
        _check(opening, self._resources.voices)
        if self._draining:
            raise Draining(GATEWAY_STOPS)
        call_id = secrets.token_hex(16)
        logs.bind(call_id, opening.traceparent, caller.key_id)
        observer = self._watch(call_id, caller, opening)
        with reported(observer.ended):
            if not isinstance(opening.origin, Resumed):
                self._resources.overload.check()
            handle = self._handle(caller, opening)
            conversation = Conversation(self._resources, opening, handle, call_id, caller.key_id, observer)
            self._conversations.add(conversation)
            try:
                async with self._limits.admit(caller, handle.name, conversation.end) as use, \
                        contextlib.aclosing(conversation.hold(inputs, use)) as events:
                    async for event in events:
                        yield event
            finally:
                self._conversations.discard(conversation)
                conversation.over.set()

    async def forget(self, caller: Caller, handle: str) -> None:
        """End and erase a conversation. Raises what `export` does."""
        await self._resources.sessions.forget(self._known(caller, handle))

    async def export(self, caller: Caller, handle: str) -> Record:
        """What is kept of a conversation. Raises UnknownSession, ResumeUnavailable, ResumeIncompatible, TooManyResumes.
        """
        _, record = await self._resources.sessions.read(self._known(caller, handle))
        return record

    async def replay(self, caller: Caller, model_id: str, sampling: lm_pb2.Sampling, past: Past,
                     steps: AsyncIterator[Recorded], *, audio: bool) -> AsyncGenerator[Begun | Replayed, None]:
        """Step a recording again, after its past. Counts as a call of the caller's. Raises MeshError."""
        if self._draining:
            raise Draining(GATEWAY_STOPS)
        self._resources.overload.check()
        model = await self._resources.fleet.model(model_id)
        lm = self._resources.fleet.lm.info(model.model_id)
        history = History(lm.user_codebooks, lm.own_codebooks, lm.delay_frames, lm.context_frames)
        most = history.most_kept + BLOCK_STEPS  # what Export gives; more would keep all callers waiting
        if len(past.user_codes) > most * lm.user_codebooks or len(past.controls) > len(past.user_codes):
            raise InvalidRequest("BAD_RECORDING", f"a past may have {most} steps, with controls of these alone",
                                 field="config.past")
        try:
            history.begin(past.first_step, past.user_codes, past.tokens, past.controls)
            history.prompt = past.prompt
        except ValueError as error:
            raise InvalidRequest("BAD_RECORDING", f"config.past: {error}", field="config.past") from None
        name = f"replay-{secrets.token_hex(8)}"
        replay = Replay(self._resources, model, sampling, history, audio=audio, observer=Unheard())
        self._replays += 1
        try:
            async with self._limits.admit(caller, name, replay.fail), \
                    contextlib.aclosing(replay.hold(steps)) as events:
                async for event in events:
                    yield event
        finally:
            self._replays -= 1

    async def grant(self, caller: Caller, handle: str, lives_s: float) -> tuple[str, int]:
        """A grant to listen to a conversation, and when it expires, in ms since the Unix epoch. Raises what `export`
        does.
        """
        known = self._known(caller, handle)
        if not any(conversation.holds(known.name) for conversation in self._conversations):
            await self._resources.sessions.read(known)
        expires_unix_ms = round((time.time() + lives_s) * 1000)
        return make_grant(known, expires_unix_ms), expires_unix_ms

    async def listen(self, caller: Caller, grant: str) -> AsyncGenerator[Listened, None]:
        """What happens in a call that this gateway holds, from now on. The grant is enough, whoever the caller is.

        Raises PermissionDenied, UnknownSession, CallNotHere, TooManyListeners, TooManyResumes; Unauthenticated when the
        caller's key is revoked.
        """
        if wait_s := self._resumes_from_address.take(caller.address):
            raise TooManyResumes("too many ask to listen or resume from this address; wait", wait_s)
        shown = Grant.read(grant, round(time.time() * 1000))
        held = next((conversation for conversation in self._conversations if conversation.holds(shown.name)), None)
        if held is None:
            raise await self._elsewhere(shown)
        async with contextlib.aclosing(held.listen(shown)) as told:
            async for item in told:
                if not caller.valid():
                    raise Unauthenticated("KEY_REVOKED", "the key of who listens was revoked")
                if isinstance(item, Listening):
                    logs.bind(item.session_id, "", caller.key_id)
                    log.info("somebody listens to this call")
                yield item

    async def _elsewhere(self, grant: Grant) -> CallNotHere:
        """Why this gateway can't let anybody listen to a call that it does not hold. Raises UnknownSession."""
        try:
            gateway = await self._resources.sessions.holder(grant.name)
        except ResumeUnavailable:
            return CallNotHere("this gateway does not hold the call, and Redis does not say which one does; try the "
                               "others with the same grant")
        if gateway is None:
            return CallNotHere("the call was cut off; when it is resumed, listen again with the same grant")
        return CallNotHere(f"the call was last seen at the gateway {gateway}; listen there with the same grant",
                           gateway=gateway)

    def _handle(self, caller: Caller, opening: Opening) -> Handle:
        """The conversation's handle. Raises UnknownSession, TooManyResumes."""
        if not isinstance(opening.origin, Resumed):
            return Handle.new()
        known = self._known(caller, opening.origin.handle)
        return Handle.new() if isinstance(opening.origin, Forked) else known

    def _known(self, caller: Caller, text: str) -> Handle:
        """A handle that a caller has. Raises UnknownSession, TooManyResumes."""
        handle = Handle(text)
        wait_s = max(self._resumes_of_handle.take(handle.name),
                     self._resumes_from_address.take(caller.address))
        if wait_s:
            raise TooManyResumes("this conversation is resumed too often; wait before you do it again", wait_s)
        return handle

    @property
    def conversations(self) -> Collection[Conversation]:
        """Those that are held now, or wait in line."""
        return self._conversations

    @property
    def calls(self) -> int:
        """Conversations that are held now, or wait in line."""
        return len(self._conversations)

    def disagreements(self) -> Iterator[Violation]:
        """What is held for no call, if anything is; see services/mesh/invariants.py."""
        calls, fleet = self.calls + self._replays, self._resources.fleet
        rows = sum(len(replica.tunnel.calls) for pool in (fleet.codec, fleet.lm) for replica in pool.known)
        if rows > MOST_ROWS_OF_CALL * calls:
            yield Violation(_ROWS, "more rows are held at replicas than calls take:", f"{rows} for {calls}")
        if (sessions := self._resources.sessions.open) > self.calls:
            yield Violation(_SESSIONS, "more sessions are open than calls are held:", f"{sessions} in {self.calls}")
        if (waiting := self._resources.line.waiting) > self.calls:
            yield Violation(_LINE, "more callers wait in line than there are:", f"{waiting} of {self.calls}")

    @property
    def draining(self) -> bool:
        """Whether it takes no new calls."""
        return self._draining

    async def info(self) -> ModelInfo:
        """The model that a conversation gets if it names none. Raises PeerLost, ModelMismatch."""
        await self._resources.fleet.refresh(INFO_AGE_S)
        return self._info(await self._resources.fleet.model())

    async def models(self) -> list[ModelInfo]:
        """All models that conversations can have now, by id. Raises PeerLost, ModelMismatch."""
        await self._resources.fleet.refresh(INFO_AGE_S)
        return [self._info(model) for model in self._resources.fleet.models()]

    @property
    def voices(self) -> list[Voice]:
        """The voices that conversations can begin with, by name."""
        return self._resources.voices.all

    def _info(self, model: Model) -> ModelInfo:
        fleet = self._resources.fleet
        codec = fleet.codec.info(model.codec_id)
        return ModelInfo(model.model_id, model.codec_id, codec.sample_rate_hertz, codec.samples_per_frame,
                         fleet.slots_total(model), fleet.slots_free(model),
                         fleet.lm.info(model.model_id).text_prompt_characters)

    def drain(self) -> None:
        """Take no new calls, and ask the running ones to reconnect: another gateway finds their sessions in Redis."""
        self._draining = True
        self._asking = asyncio.create_task(ask_to_leave(list(self._conversations), self._drain_s))
        asyncio.get_running_loop().call_later(self._drain_s, self._end_all)

    def _end_all(self) -> None:
        for conversation in self._conversations:
            conversation.end(Draining("this gateway stops now; connect again to reach another one"))

    async def close(self) -> None:
        """Write the last records."""
        if self._asking is not None:
            self._asking.cancel()
        await self._resources.sessions.close()


def _check(opening: Opening, voices: Voices) -> None:
    """Refuse voices that are not there, and numbers that no conversation has. Raises InvalidRequest."""
    asked = opening.origin
    if not isinstance(asked, Resumed):
        voices.check(asked)
        return
    for field, sequence in (("first_sequence", asked.first_sequence), ("answered_sequence", asked.answered_sequence)):
        if sequence is not None and sequence > MOST_FRAMES:
            raise InvalidRequest("BAD_SEQUENCE", f"{field} must be at most {MOST_FRAMES}, got {sequence}",
                                 field=f"config.{field}", accepted=f"0..{MOST_FRAMES}")
