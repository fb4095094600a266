"""The section of docs/reliability.md about a fleet: written by `make fleet-check`, below what `make chaos` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path("docs/reliability.md")
BEGIN, END = "<!-- fleet-check: begin -->", "<!-- fleet-check: end -->"
_CALLS = (
    ("every pod replaced, as the manifests say", "rolling", None),
    ("codecs and language models replaced, engines that compute nothing", "drain_frames_late", "codec_and_lm"),
    ("gateways replaced, engines that compute nothing", "drain_frames_late", "gateway"),
    ("a gateway killed, engines that compute nothing", "null_gateway_kill", None),
    ("the emptiest of three language models goes", "scale_down", None),
    ("a node cut off for 10 s", "partition", None),
)


def write(found: Mapping[str, Any], path: Path = PAGE) -> None:
    """Put these figures into the page, in place of those before; what was not measured, or failed, has no row."""
    lines = ["Written by `make fleet-check` from `out/fleet.json`: the pods of the `dev` overlay as processes of one "
             "machine, all under live calls.", "",
             "| what happens | calls | lost | frames lost | late, most of one call, before | gap p50 / p95 / max ms |",
             "|---|---|---|---|---|---|"]
    for what, part, within in _CALLS:
        row = found.get(part)
        row = row.get(within) if within is not None and isinstance(row, Mapping) else row
        if isinstance(row, Mapping):
            lines.append(f"| {what} | {row['calls']} | {row['calls_lost']} | {row['frames_lost']} | "
                         f"{row['frames_late']}, {row.get('frames_late_of_one_call', '-')}, "
                         f"{row.get('frames_late_before', '-')} | "
                         f"{row['gap_p50_ms']} / {row['gap_p95_ms']} / {row['gap_max_ms']} |")
    killed = [f"{service} {found[name]}" for service in ("codec", "gateway")
              if isinstance(found.get(name := f"{service}_kill_gap_p95_ms"), int)]
    if killed:
        lines += ["", f"Gap p95 after kill -9 beside real engines, in ms: {', '.join(killed)}."]
    if isinstance(links := found.get("links"), list):
        lines += ["", "Two nodes, each with a replica of everything; on the link between them, each way:", "",
                  "| latency, loss | frames | skipped | late | later than without: p50 / p99 ms | calls lost |",
                  "|---|---|---|---|---|---|"]
        lines += [f"| {row['latency_ms']:g} ms, {row['loss']:.1%} | {row['frames']} | {row['frames_skipped']} | "
                  f"{row['frames_late']} | {row['later_p50_ms']} / {row['later_p99_ms']} | {row['calls_lost']} |"
                  for row in links]
    before, _, rest = path.read_text().partition(BEGIN)
    path.write_text("\n".join([before + BEGIN, *lines, END]) + rest.partition(END)[2])
