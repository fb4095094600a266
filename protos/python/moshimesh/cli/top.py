"""`moshimesh top`: a gateway's replicas, calls and frames in the terminal, refreshed until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from moshimesh.cli.output import CommandFailed

ANSWER_S = 5.0
LATE_SHOWN = 8
CLEAR = "\033[H\033[2J"


def add_to(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser("top", parents=[common], help="a gateway's replicas, calls and frames, live")
    parser.add_argument("--url", default=os.environ.get("MOSHIMESH_URL", "http://localhost:8000"),
                        help="the gateway's HTTP side; also MOSHIMESH_URL (default: %(default)s)")
    parser.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between two looks (default: 2)")
    parser.add_argument("--once", action="store_true", help="look once")
    parser.set_defaults(run=run)


async def run(options: argparse.Namespace) -> None:
    """Show it until Ctrl-C. Raises CommandFailed when the first look fails; later it goes on trying."""
    shown = False
    while True:
        try:
            status = await asyncio.to_thread(_ask, options)
            text = json.dumps(status) if options.json else "\n".join(render(status))
        except CommandFailed as error:
            if not shown:
                raise
            text = str(error)
        shown = True
        clear = CLEAR if sys.stdout.isatty() and not options.json and not options.once else ""
        print(clear + text, flush=True)
        if options.once:
            return
        await asyncio.sleep(max(options.every, 0.2))


def _ask(options: argparse.Namespace) -> Any:
    """The answer of /api/status. Raises CommandFailed."""
    url = urllib.parse.urlsplit(options.url)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise CommandFailed(f"--url must be like http://localhost:8000, got {options.url!r}")
    request = urllib.request.Request(f"{url.scheme}://{url.netloc}/api/status")
    if options.key:
        request.add_header("Authorization", f"Bearer {options.key}")
    try:
        context = ssl.create_default_context(cafile=options.ca) if url.scheme == "https" else None
        with urllib.request.urlopen(request, timeout=ANSWER_S, context=context) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise CommandFailed(_refusal(error)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise CommandFailed(f"nobody answers at {options.url} ({reason}); start a mesh with `make run`, or name one "
                            "with --url") from None


def _refusal(error: urllib.error.HTTPError) -> str:
    try:
        message = json.load(error)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"HTTP {error.code}"
    return f"{message}; give a key with --key-file or MOSHIMESH_KEY" if error.code == 401 else str(message)


def render(status: dict[str, Any]) -> Iterator[str]:
    """The status as lines of text."""
    gateway, calls, frames = status["gateway"], status["calls"], status["frames"]
    state = "draining" if gateway["draining"] else "taking calls"
    yield (f"moshi-mesh {gateway['version']}  up {_duration(gateway['uptime_s'])}  {state}  {calls['held']} calls, "
           f"{calls['waiting']} in line")
    yield ""
    yield from _table(("MODEL", "SLOTS FREE", "IN LINE"), (
        (model["model"], _of(model), model["waiting"]) for model in status["models"]))
    yield ""
    yield from _table(("SERVICE", "ADDRESS", "STATE", "SLOTS FREE", "ASKED", "SERVES"),
                      map(_replica, status["replicas"]))
    yield ""
    hops = [*frames["hops"].items(), ("all of it", frames["whole"])]
    yield f"{frames['answered']} frames in the last {frames['window_s']} s, {frames['late']} late"
    yield from _table(("HOP", "MEDIAN", "SLOWEST 1 %"), (
        (name, _ms(hop["p50_ms"]), _ms(hop["p99_ms"])) for name, hop in hops))
    if status["late"]:
        yield ""
        yield from _table(("LATE AT", "FRAME", "TOOK", "SLOWEST HOP", "TRACE"), (
            (time.strftime("%H:%M:%S", time.localtime(late["at_unix_ms"] / 1000)), late["sequence"],
             _ms(late["whole_ms"]), f"{late['slowest_hop']} {_ms(late['slowest_ms'])}", late["trace_id"] or "-")
            for late in status["late"][:LATE_SHOWN]))


def _replica(replica: dict[str, Any]) -> tuple[object, ...]:
    age = "never" if replica["age_s"] is None else f"{replica['age_s']:.1f} s ago"
    if not replica["answers"]:
        return replica["role"], replica["address"], f"no answer: {replica['problem']}", "-", age, "-"
    state = "draining" if replica["draining"] else "up"
    return replica["role"], replica["address"], state, _of(replica), age, replica["serves"]


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    lines = [head, *(tuple(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()


def _of(slots: dict[str, Any]) -> str:
    return f"{slots['slots_free']} of {slots['slots_total']}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _duration(seconds: int) -> str:
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"
