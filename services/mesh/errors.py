"""What can go wrong in the mesh, in the domain's words, and the one place where it becomes a gRPC status.

    MeshError
    +-- InvalidRequest      the caller sent something that the contract forbids
    +-- Unauthenticated     the caller has not shown who it is
    +-- PermissionDenied    the mesh knows the caller, and does not let it do this
    +-- TooManyRefused      an address shows one credential after the other that does not hold
    +-- TooManyTickets      an address asks for more tickets than it can use
    +-- TicketsUnavailable  tickets can't be checked or made now
    +-- IssuerUnavailable   the keys of who signs tokens can't be fetched
    +-- UnknownSession      there is no such session (any more)
    +-- UnknownModel        no replica serves this model
    +-- NoFreeSlot          every slot of this replica is taken; another replica may have one
    +-- Draining            this replica takes no new calls; another one does
    +-- SlowCaller          the caller does not read its answers, or never sends its config
    +-- IdleCaller          the caller holds slots without sending audio
    +-- CallTooLong         the call has lasted as long as a call may
    +-- LineFull            every slot is taken, and every place in the line, too
    +-- Overloaded          the calls that there are come late already, so no new one is taken
    +-- TooManyCalls        the caller's key or address has as many calls as it may have
    +-- AudioQuotaUsed      the caller has sent as much audio as it may in an hour
    +-- TooManyResumes      a conversation is resumed again and again
    +-- TooManyControls     a call brings more controls than its audio allows
    +-- SessionMoved        the conversation was resumed elsewhere
    +-- CallNotHere         the call that somebody listens to is not held by this gateway (any more)
    +-- TooManyListeners    as many listen to a call as may
    +-- ResumeUnavailable   the store of the sessions does not answer, or refuses
    +-- ResumeIncompatible  a gateway of another version wrote the session, in a format that this one does not read
    +-- PeerLost            a service further down the mesh is unreachable or ended the call
    +-- PeerRefused         another service's refusal, passed on as it is
    +-- ModelMismatch       no language model's codec is served
    +-- EngineFailed        a step of the engine failed; our bug

Codes follow https://google.aip.dev/193; reasons are listed in docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "moshimesh"
# Readable without google.rpc's messages, so that a caller in any language can switch on it.
REASON_KEY = "moshimesh-reason"
RETRY_AFTER_KEY = "moshimesh-retry-after-ms"
DETAILS_KEY = "grpc-status-details-bin"  # where gRPC puts google.rpc.Status


class MeshError(Exception):
    """A failure with a gRPC code, a reason for machines, and a message that says what to do."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"
    retry_after_s: float | None = None

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = {key: str(value) for key, value in metadata.items()}

    def to_status(self) -> status_pb2.Status:
        """The error in gRPC's rich error model."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        status = status_pb2.Status(code=self.code.value[0], message=self.message, details=[_pack(info)])
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(round(self.retry_after_s * 1000))
            status.details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
        return status

    async def abort(self, context: grpc.aio.ServicerContext) -> NoReturn:
        """End a call with this error."""
        trailers: list[tuple[str, str | bytes]] = [(REASON_KEY, self.reason)]
        if self.retry_after_s is not None:
            trailers.append((RETRY_AFTER_KEY, str(round(self.retry_after_s * 1000))))
        await context.abort(self.code, self.message, (*trailers, (DETAILS_KEY, self.to_status().SerializeToString())))
        raise AssertionError("abort always raises")


class _OfManyReasons(MeshError):
    """Each has its own reason."""

    def __init__(self, reason: str, message: str, **metadata: object) -> None:
        super().__init__(message, **metadata)
        self.reason = reason


class _Wait(MeshError):
    """Each says how long to wait."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class InvalidRequest(_OfManyReasons):
    """The caller broke the contract; metadata names the field and the accepted range."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class Unauthenticated(_OfManyReasons):
    """The caller has shown nothing that says who it is, or nothing that holds (any more)."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(_OfManyReasons):
    """The mesh knows who calls, and does not let it do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class TooManyRefused(_Wait):
    """An address shows one credential after the other that does not hold."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REFUSED"


class TooManyTickets(_Wait):
    """An address asks for one ticket after the other."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_TICKETS"


class TicketsUnavailable(MeshError):
    """The store of the tickets does not answer."""

    code, reason = grpc.StatusCode.UNAVAILABLE, "TICKETS_UNAVAILABLE"
    retry_after_s = 1.0


class IssuerUnavailable(MeshError):
    """The keys of who signs tokens can't be fetched."""

    code, reason = grpc.StatusCode.UNAVAILABLE, "ISSUER_UNAVAILABLE"
    retry_after_s = 5.0


class UnknownSession(MeshError):
    """No session has this id or handle."""

    code, reason = grpc.StatusCode.NOT_FOUND, "UNKNOWN_SESSION"


class UnknownModel(MeshError):
    """No replica serves the model that the caller names; metadata names those that are served."""

    code, reason = grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL"


class NoFreeSlot(MeshError):
    """Every slot of this replica is taken; another replica may have one."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_FREE_SLOT"
    retry_after_s = 1.0


class Draining(MeshError):
    """This replica is about to stop and takes no new calls."""

    code, reason = grpc.StatusCode.UNAVAILABLE, "DRAINING"
    retry_after_s = 1.0


class SlowCaller(MeshError):
    """The caller kept the mesh waiting for longer than it may."""

    code, reason = grpc.StatusCode.DEADLINE_EXCEEDED, "SLOW_CALLER"


class IdleCaller(MeshError):
    """The caller holds slots without sending audio."""

    code, reason = grpc.StatusCode.DEADLINE_EXCEEDED, "IDLE_CALLER"


class CallTooLong(MeshError):
    """The call has lasted as long as a call may."""

    code, reason = grpc.StatusCode.DEADLINE_EXCEEDED, "CALL_TOO_LONG"


class LineFull(MeshError):
    """Every slot of the mesh is taken, and so is every place in the line."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "LINE_FULL"
    retry_after_s = 5.0


class Overloaded(MeshError):
    """Nearly all frames are late, so that one more call would only make it worse."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"
    retry_after_s = 5.0


class TooManyCalls(MeshError):
    """The caller's key, or its address, has as many calls as it may have: at once, or new ones in a minute."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS"
    retry_after_s = 5.0


class AudioQuotaUsed(MeshError):
    """The caller's key has sent as much audio as it may in an hour."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "AUDIO_QUOTA_USED"
    retry_after_s = 60.0


class TooManyResumes(_Wait):
    """A conversation is resumed again and again, or too many are from one address."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_RESUMES"


class TooManyControls(MeshError):
    """A call brings more controls than its audio allows."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CONTROLS"


class SessionMoved(MeshError):
    """The conversation was resumed elsewhere with its resume handle."""

    code, reason = grpc.StatusCode.ABORTED, "SESSION_MOVED"

    def __init__(self, where: str = "elsewhere") -> None:
        super().__init__(f"the conversation was resumed {where} with its resume handle")


class CallNotHere(MeshError):
    """The call that somebody wants to listen to, or listened to, is not held by this gateway (any more)."""

    code, reason = grpc.StatusCode.UNAVAILABLE, "CALL_NOT_HERE"
    retry_after_s = 0.5  # in which a call that moves is open again


class TooManyListeners(MeshError):
    """As many listen to a call as may."""

    code, reason = grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_LISTENERS"
    retry_after_s = 5.0


class ResumeUnavailable(MeshError):
    """The store of the sessions does not answer, or refuses."""

    code, reason = grpc.StatusCode.UNAVAILABLE, "RESUME_UNAVAILABLE"
    retry_after_s = 0.5


class ResumeIncompatible(MeshError):
    """A gateway of another version wrote the session. During a rolling upgrade another gateway can read it."""

    code, reason = grpc.StatusCode.UNAVAILABLE, "RESUME_INCOMPATIBLE"
    retry_after_s = 1.0


class PeerLost(MeshError):
    """A service that the call needs can't be reached or ended it."""

    code, reason = grpc.StatusCode.UNAVAILABLE, "PEER_LOST"
    retry_after_s = 1.0


class ModelMismatch(MeshError):
    """No codec replica serves the codec of any language model that is there."""

    code, reason = grpc.StatusCode.FAILED_PRECONDITION, "MODEL_MISMATCH"


class EngineFailed(MeshError):
    """A step of the engine raised."""

    code, reason = grpc.StatusCode.INTERNAL, "ENGINE_FAILED"


class PeerRefused(MeshError):
    """Another service's refusal, passed on with its own code and reason."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str, metadata: Mapping[str, str],
                 retry_after_s: float | None) -> None:
        super().__init__(message, **metadata)
        self.code, self.reason, self.retry_after_s = code, reason, retry_after_s


def from_rpc_error(error: grpc.aio.AioRpcError, peer: str) -> MeshError:
    """What a call to `peer` failed with: the peer's own refusal, or that the peer was lost."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            return from_status(error.code().value[0], error.details() or "", value, peer)
    ended_while_writing = error.details() == "Internal error from Core"  # https://github.com/grpc/grpc/issues/36066
    if ended_while_writing or error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return PeerLost(f"{peer} can't be reached: {error.details()}", peer=peer)
    return from_status(error.code().value[0], error.details() or "", b"", peer)


def from_status(code: int, message: str, details: bytes, peer: str) -> MeshError:
    """The error that `peer` ended a call with: its code, and a google.rpc.Status if it sent one."""
    info = error_details_pb2.ErrorInfo(reason="PEER_FAILED", metadata={"peer": peer})
    retry = error_details_pb2.RetryInfo()
    retry_after_s = None
    for detail in status_pb2.Status.FromString(details).details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return PeerRefused(_CODES[code], info.reason, message, dict(info.metadata), retry_after_s)


_CODES = {code.value[0]: code for code in grpc.StatusCode}


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
