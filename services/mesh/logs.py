"""Log lines for people (`--log-format text`) or for machines (`json`, one object a line).

A line of a call carries the call's session, and its trace if it has one: handlers `bind` them, and the tasks that they
start inherit them. A task that outlives the call which happened to start it, such as the reader of a connection that
many calls share, must start in an empty context (`unbound`). What it does later for one call, it does in that call's
own context (`contextvars.copy_context()` where the call is set up). Neither text nor audio is ever logged.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from contextvars import Context, ContextVar

from services.mesh.config import ProcessConfig

_session: ContextVar[str] = ContextVar("session", default="")
_trace_id: ContextVar[str] = ContextVar("trace_id", default="")
_key_id: ContextVar[str] = ContextVar("key_id", default="")
# Only this goes into lines, since a caller may send anything: https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = re.compile("[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
EXTRAS = ("session", "sessions", "trace_id", "span_id")  # what a line may be given with `extra`


def bind(session: str, traceparent: str = "", key_id: str = "") -> None:
    """Let the lines of this task, and of those that it starts, carry a call's session, its W3C trace context and what
    names its caller's key.

    A later `bind` in the same task replaces all: a call that turns out to resume a session is bound to that one.
    """
    _session.set(session)
    _key_id.set(key_id)
    found = _TRACEPARENT.fullmatch(traceparent)
    _trace_id.set(found[1] if found else "")


def unbound() -> Context:
    """A context without a call: `unbound().run(asyncio.create_task, work())` starts a task that belongs to no call."""
    return Context()


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, service, and session, trace_id and key_id where they are
    known.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        seconds, millis = time.gmtime(record.created), int(record.msecs)
        line: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', seconds)}.{millis:03d}Z", "level": record.levelname.lower(),
            "logger": record.name, "message": record.getMessage(), "service": self._service}
        line |= {name: value for name, value in (
            ("session", _session.get()), ("trace_id", _trace_id.get()), ("key_id", _key_id.get())) if value}
        line |= {name: getattr(record, name) for name in EXTRAS if hasattr(record, name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(config: ProcessConfig, program: str) -> None:
    """Set up the process's logs, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(program) if config.log_format == "json" else logging.Formatter(
        f"%(asctime)s.%(msecs)03d {program:<8} %(levelname)-7s %(message)s", "%H:%M:%S"))
    logging.getLogger("grpc._cython.cygrpc").addFilter(_OfGrpc())
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])


class _OfGrpc(logging.Filter):
    """What gRPC logs about a message that it can't take, such as one that is too large when unpacked: a traceback for
    each, and a caller could send any number. One short line in 10 s is left.
    """

    def __init__(self, every_s: float = 10.0, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s, self._now, self._next = every_s, now, float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        if "ExecuteBatchError" not in record.getMessage():
            return True
        record.exc_info, record.levelno, record.levelname = None, logging.WARNING, "WARNING"
        if self._now() < self._next:
            return False
        self._next = self._now() + self._every_s
        return True


class Sparing:
    """Logs at most one line in `every_s`, since a caller could ask for any number; the next line counts the others."""

    def __init__(self, log: logging.Logger, every_s: float = 10.0, now: Callable[[], float] = time.monotonic) -> None:
        self._log, self._every_s, self._now = log, every_s, now
        self._next = float("-inf")
        self._left_out = 0

    def warning(self, message: str, *arguments: object) -> None:
        """Log a warning, or count it."""
        if self._now() < self._next:
            self._left_out += 1
            return
        if self._left_out:
            message, arguments = f"{message} (and %d lines like this one before)", (*arguments, self._left_out)
        self._next, self._left_out = self._now() + self._every_s, 0
        self._log.warning(message, *arguments)
