"""An OTLP collector for tests, and what a test wants to know about the spans that came."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from harness import receiver as receiver_
from harness.receiver import Span
from services.mesh.recorder import GAP_NANOS, SHORTEST_NANOS
from tests import jaeger

HOPS = {"gateway.ingest": "gateway", "codec.encode": "codec", "lm.step": "lm", "codec.decode": "codec",
        "gateway.emit": "gateway"}
UNANSWERED = {"codec.decode", "gateway.emit"}  # the hops that a frame without an answer does not have
REMOTE = ("codec.encode", "lm.step", "codec.decode")


@dataclass
class Frame:
    """The trace of one kept frame."""

    root: Span
    spans: list[Span]

    @property
    def sequence(self) -> object:
        return self.root.attributes["moshimesh.sequence"]

    @property
    def because(self) -> object:
        return self.root.attributes["moshimesh.kept_because"]

    def children(self, span: Span) -> list[Span]:
        return [child for child in self.spans if child.parent_id == span.span_id]

    @property
    def hops(self) -> dict[str, Span]:
        return {span.name: span for span in self.children(self.root)}

    @property
    def complete(self) -> bool:
        """Whether every hop has come; those of a frame of the delay line, which has no answer, are fewer."""
        return set(HOPS) - set(self.hops) in (set(), UNANSWERED)

    def part(self, hop: str, part: str) -> Span:
        (found,) = (span for span in self.children(self.hops[hop]) if span.name == f"{hop}.{part}")
        return found

    def ms_of(self, hop: str, part: str) -> float:
        """What a part took; 0 for one that was too short to be sent."""
        return sum(span.ms for span in self.children(self.hops[hop]) if span.name == f"{hop}.{part}")

    def check(self) -> None:
        """Every span has its parent in this trace and lies inside of it, and the hops leave nothing unexplained."""
        by_id = {span.span_id: span for span in self.spans}
        assert len(by_id) == len(self.spans)
        for span in self.spans:
            assert span.start <= span.end, span
            if span is not self.root:
                parent = by_id[span.parent_id]
                assert parent.start <= span.start and span.end <= parent.end, (parent.name, span)
        at = self.root.start
        for hop in sorted(self.hops.values(), key=lambda span: span.start):
            assert hop.service == HOPS[hop.name]
            assert hop.start == at
            at = hop.end + GAP_NANOS
            inside = hop.start
            parts = sorted(self.children(hop), key=lambda span: span.start)
            assert {part.name for part in parts} <= {f"{hop.name}.{part}" for part in ("transit", "queue", "compute")}
            for part in parts:  # those that took no time are left out
                assert 0 <= part.start - inside < 2 * (GAP_NANOS + SHORTEST_NANOS)
                inside = part.end + GAP_NANOS
            assert 0 <= hop.end + GAP_NANOS - inside < 2 * (GAP_NANOS + SHORTEST_NANOS)
        jaeger.check(jaeger.tree((span.name, span.span_id, span.parent_id, span.start, span.end)
                                 for span in self.spans))


class Receiver:
    """What a collector has got."""

    def __init__(self, receiver: receiver_.Receiver) -> None:
        self._receiver = receiver
        self.endpoint = receiver.endpoint

    @property
    def spans(self) -> Sequence[Span]:
        return self._receiver.spans

    async def until(self, condition: Callable[[], object], within_s: float = 30.0) -> None:
        """Wait until something holds of what has come. A test says then what is missing, so there is no error here."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while not condition() and loop.time() < deadline:
            await self._receiver.came(0.2)

    def whole(self) -> list[Frame]:
        """The kept frames of which all hops have come."""
        return [frame for frame in self.frames() if set(frame.hops) == set(HOPS)]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def frames(self) -> list[Frame]:
        """The kept frames, by sequence."""
        traces: dict[str, list[Span]] = defaultdict(list)
        for span in self.spans:
            traces[span.trace_id].append(span)
        frames = [Frame(span, traces[span.trace_id]) for span in self.named("frame")]
        return sorted(frames, key=lambda frame: frame.sequence)  # type: ignore[arg-type, return-value]


@contextlib.asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """A running one."""
    async with receiver_.receiving() as receiving:
        yield Receiver(receiving)


@contextlib.asynccontextmanager
async def hanging() -> AsyncIterator[str]:
    """The endpoint of a collector that accepts everything and never answers."""
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


def sequences(frames: Sequence[Frame]) -> list[object]:
    return [frame.sequence for frame in frames]
