"""Where a conversation begins: anew, or where it was cut off."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.callers import Forked, New, Opening, Resumed
from services.gateway.calls.ending import call_too_long
from services.gateway.calls.resources import Resources
from services.gateway.peers.models import Model
from services.gateway.sessions.history import History
from services.gateway.sessions.journal import Session
from services.gateway.sessions.records import Record
from services.gateway.sessions.sealing import Handle
from services.mesh.errors import InvalidRequest, PeerLost, UnknownModel


class Origin(Protocol):
    """What a conversation goes on from."""

    session_id: str
    model: Model
    sampling: lm_pb2.Sampling
    history: History
    ahead: bool
    """Whether it waits in line before new callers, since its caller was cut off."""

    async def wait(self) -> None:
        """The conversation must wait for its rows."""

    async def begin(self, sampling: lm_pb2.Sampling) -> Session:
        """The session, now that its rows are open and the model has said what sampling is in force. Raises as
        Sessions.take_over does.
        """

    def abandon(self, reason: str) -> None:
        """The conversation ended before `begin`."""


class NewOrigin:
    """A new conversation."""

    ahead = False

    def __init__(self, resources: Resources, handle: Handle, session_id: str, model: Model, sampling: lm_pb2.Sampling
                 ) -> None:
        self.session_id, self.model, self.sampling = session_id, model, sampling
        lm = resources.fleet.lm.info(model.model_id)
        self.history = History(lm.user_codebooks, lm.own_codebooks, lm.delay_frames, lm.context_frames)
        self._sessions, self._handle = resources.sessions, handle

    async def wait(self) -> None:
        """See Origin."""

    async def begin(self, sampling: lm_pb2.Sampling) -> Session:
        """See Origin."""
        return self._sessions.create(self._handle, Record(
            self.session_id, self.model.model_id, self.model.codec_id, sampling, self.history))

    def abandon(self, reason: str) -> None:
        """Nothing of it is kept."""


class ForkedOrigin(NewOrigin):
    """A copy of a conversation."""

    def __init__(self, resources: Resources, handle: Handle, session_id: str, model: Model, record: Record,
                 asked: lm_pb2.Sampling) -> None:
        sampling, changed = lm_pb2.Sampling(), lm_pb2.Sampling()
        sampling.CopyFrom(record.sampling)
        changed.CopyFrom(asked)
        if asked.HasField("seed"):
            sampling.seed = asked.seed
            changed.ClearField("seed")
        super().__init__(resources, handle, session_id, model, sampling)
        self.history = record.history
        if changed.ByteSize():  # the steps that are copied were drawn otherwise
            self.history.controls.ahead[self.history.next_sequence] = lm_pb2.StepControls(sampling=changed)

    async def begin(self, sampling: lm_pb2.Sampling) -> Session:
        """See Origin."""
        return await super().begin(self.sampling)  # what is in force now comes from the history's controls


class ResumedOrigin:
    """A session that was cut off, or is about to leave its gateway.

    It is taken over when its rows are open, so that a call that still holds it goes on until then, and is not touched
    if they can't be opened.
    """

    ahead = True

    def __init__(self, record: Record, model: Model, owned: Session | Callable[[], Awaitable[Session]]) -> None:
        """`owned` is the session, or what takes it over."""
        self.session_id, self.model = record.session_id, model
        self.sampling, self.history = record.sampling, record.history
        self._owned = owned

    async def wait(self) -> None:
        """Take the session over now: it may be its own old call that has the slots, and if there is none any more,
        nobody else keeps the session from expiring.
        """
        await self._own()

    async def begin(self, sampling: lm_pb2.Sampling) -> Session:
        """See Origin."""
        return await self._own()

    async def _own(self) -> Session:
        if not isinstance(self._owned, Session):
            self._owned = await self._owned()
        return self._owned

    def abandon(self, reason: str) -> None:
        """It can be resumed again."""
        if isinstance(self._owned, Session):
            self._owned.end(reason, keep=True)


async def find_origin(resources: Resources, opening: Opening, handle: Handle, call_id: str) -> Origin:
    """What the opening asks for.

    Raises:
        InvalidRequest: the mesh can't serve it.
        PeerLost, ModelMismatch, UnknownModel: no replica serves the model.
        CallTooLong: it has lasted as long as a call may.
        UnknownSession, ResumeUnavailable, ResumeIncompatible: see Sessions.resume.
    """
    asked = opening.origin
    if isinstance(asked, Forked):
        _, record = await resources.sessions.read(Handle(asked.handle))
        if asked.answered_sequence is not None:
            _rewind(record.history, asked.answered_sequence + 1)
            record.history.controls.ahead.clear()  # what the other one was told later
        model = await _model_of(record, resources)
        return ForkedOrigin(resources, handle, call_id, model, record, asked.sampling)
    if isinstance(asked, Resumed):
        answered = asked.answered_sequence

        async def check(record: Record) -> tuple[Record, Model]:
            if record.age_s >= resources.longest_call_s:
                raise call_too_long(resources.longest_call_s)
            return record, await _model_of(record, resources)

        sessions = resources.sessions
        if answered is None:  # it goes on after the last frame that was heard, so its old call may hear no more
            session, (record, model) = await sessions.resume(handle, check)
            return ResumedOrigin(record, model, session)
        seen, record = await sessions.read(handle)
        record, model = await check(record)
        _rewind(record.history, answered + 1)
        return ResumedOrigin(record, model, lambda: sessions.take_over(handle, seen, record))
    model = await resources.fleet.model(asked.model_id)
    origin = NewOrigin(resources, handle, call_id, model, asked.sampling)
    await set_prompt(origin, resources, asked)
    return origin


async def set_prompt(origin: Origin, resources: Resources, asked: New) -> None:
    """Let a new conversation begin with the voice and the text that are asked for. Raises MeshError."""
    resources.voices.check(asked)
    origin.history.prompt = await resources.voices.prompt(resources.fleet, origin.model, asked)


async def _model_of(record: Record, resources: Resources) -> Model:
    """A model that is not served now was served when the session began, and may be again in time. Raises PeerLost."""
    try:
        model = await resources.fleet.model(record.model_id)
    except UnknownModel as error:
        raise PeerLost(error.message, peer=resources.fleet.lm.role) from None
    if model.codec_id != record.codec_id:
        raise PeerLost(f"the conversation began with the codec {record.codec_id}, but {model.model_id} speaks "
                       f"{model.codec_id} now", peer=resources.fleet.codec.role)
    return model


def _rewind(history: History, next_sequence: int) -> None:
    try:
        history.rewind(next_sequence)
    except ValueError as error:
        raise InvalidRequest("BAD_SEQUENCE", str(error), field="config.answered_sequence") from None
