"""What Jaeger makes of a trace: times in whole microseconds, and the critical path that its page draws by default.

The rule is that of Jaeger's `findLastFinishingChildSpan`: from a span's end the path goes to the child that ends last;
from a child's start, to the one that ends last strictly before it; and where there is none, up to the parent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class JaegerSpan:
    """A span as Jaeger stores it."""

    name: str
    id: object
    parent_id: object
    start_us: int
    duration_us: int
    children: list[JaegerSpan] = field(default_factory=list)

    @property
    def end_us(self) -> int:
        return self.start_us + self.duration_us


def tree(spans: Iterable[tuple[str, object, object, int, int]]) -> JaegerSpan:
    """The root of spans given as (name, id, parent's id, start, end), with times in nanoseconds."""
    found = {one: JaegerSpan(name, one, parent, start // 1000, (end - start) // 1000)
             for name, one, parent, start, end in spans}
    roots = [span for span in found.values() if span.parent_id not in found]
    for span in found.values():
        if span.parent_id in found:
            found[span.parent_id].children.append(span)
    (root,) = roots
    return root


def critical_path(root: JaegerSpan) -> dict[str, int]:
    """Microseconds that each span has on the path, by name."""
    parents = {child.id: span for span in every(root) for child in span.children}
    path: dict[str, int] = {}

    def add(span: JaegerSpan, start_us: int, end_us: int) -> None:
        if start_us != end_us:
            path[span.name] = path.get(span.name, 0) + end_us - start_us

    span, before_us = root, 0
    while True:
        ended = [child for child in span.children if not before_us or child.end_us < before_us]
        last = max(ended, key=lambda child: child.end_us, default=None)
        if last is not None:
            add(span, last.end_us, before_us or span.end_us)
            span, before_us = last, 0
        else:
            add(span, span.start_us, before_us or span.end_us)
            if span.id not in parents:
                return path
            span, before_us = parents[span.id], span.start_us


def every(span: JaegerSpan) -> Iterable[JaegerSpan]:
    """A span and all below it."""
    yield span
    for child in span.children:
        yield from every(child)


def check(root: JaegerSpan) -> None:
    """No span is without a length, siblings do not touch, and the longest hop and its longest part are on the path."""
    for span in every(root):
        assert span.duration_us > 0, span.name
        children = sorted(span.children, key=lambda child: child.start_us)
        for first, second in zip(children, children[1:]):  # noqa: B905, RUF007
            assert first.end_us < second.start_us, (first, second)
    path = critical_path(root)
    hop = max(root.children, key=lambda child: child.duration_us)
    part = max(hop.children, key=lambda child: child.duration_us)
    assert path.get(part.name, 0) >= part.duration_us, (part, path)
