"""Where a conversation begins: anew, or where it was cut off."""

from __future__ import annotations

from typing import Protocol

from moshimesh.lm.v1 import lm_pb2

from services.gateway.calls.callers import Opening, Resumed
from services.gateway.calls.ending import call_too_long
from services.gateway.calls.resources import Resources
from services.gateway.sessions.history import History
from services.gateway.sessions.journal import Session
from services.gateway.sessions.records import Record
from services.gateway.sessions.sealing import Handle
from services.mesh.errors import InvalidRequest


class Origin(Protocol):
    """What a conversation goes on from."""

    session_id: str
    model_id: str
    sampling: lm_pb2.Sampling
    history: History
    ahead: bool
    """Whether it waits in line before those who are new, since its caller was cut off."""

    def begin(self, sampling: lm_pb2.Sampling) -> Session:
        """The session, now that the model has said what sampling is in force."""

    def abandon(self, reason: str) -> None:
        """The conversation ended before `begin`."""


class NewOrigin:
    """A conversation that nobody has had before."""

    ahead = False

    def __init__(self, resources: Resources, handle: Handle, session_id: str, model_id: str, sampling: lm_pb2.Sampling
                 ) -> None:
        self.session_id, self.model_id, self.sampling = session_id, model_id, sampling
        model = resources.fleet.lm.info(model_id)
        self.history = History(model.user_codebooks, model.own_codebooks, model.delay_frames, model.context_frames)
        self._sessions, self._handle = resources.sessions, handle

    def begin(self, sampling: lm_pb2.Sampling) -> Session:
        """See Origin."""
        return self._sessions.create(self._handle, self.session_id, self.model_id, sampling, self.history)

    def abandon(self, reason: str) -> None:
        """Nothing is left of it."""


class ResumedOrigin:
    """A session that was cut off."""

    ahead = True

    def __init__(self, session: Session) -> None:
        self.session_id, self.model_id = session.id, session.model_id
        self.sampling, self.history = session.sampling, session.history
        self._session = session

    def begin(self, sampling: lm_pb2.Sampling) -> Session:
        """See Origin."""
        return self._session

    def abandon(self, reason: str) -> None:
        """It can be resumed again."""
        self._session.end(reason, keep=True)


async def find_origin(resources: Resources, opening: Opening, handle: Handle, call_id: str) -> Origin:
    """What the opening asks for.

    Raises:
        InvalidRequest: the mesh can't serve it.
        PeerLost, ModelMismatch: nobody serves the model.
        CallTooLong: it has lasted as long as a call may.
        UnknownSession, ResumeUnavailable, ResumeIncompatible: see Sessions.take_up.
    """
    asked = opening.origin
    if isinstance(asked, Resumed):
        answered = asked.answered_sequence

        def check(record: Record) -> None:
            if record.age_s >= resources.longest_call_s:
                raise call_too_long(resources.longest_call_s)
            _check_rate(resources, record.model_id, opening)
            if answered is not None:
                _rewind(record.history, answered + 1)

        return ResumedOrigin(await resources.sessions.take_up(handle, check))
    model_id = await resources.fleet.model()
    _check_rate(resources, model_id, opening)
    return NewOrigin(resources, handle, call_id, model_id, asked.sampling)


def _check_rate(resources: Resources, model_id: str, opening: Opening) -> None:
    rate = resources.fleet.codec.info(model_id).sample_rate_hertz
    if opening.sample_rate_hertz != rate:
        raise InvalidRequest("BAD_SAMPLE_RATE", f"the mesh speaks {rate} Hz, got {opening.sample_rate_hertz}; resample "
                             "your audio", field="config.sample_rate_hertz", accepted=rate)


def _rewind(history: History, next_sequence: int) -> None:
    try:
        history.rewind(next_sequence)
    except ValueError as error:
        raise InvalidRequest("BAD_SEQUENCE", str(error), field="config.answered_sequence") from None
