"""`make fleet-check`: the manifests, and a fleet of processes that are started from them, under live calls.

    python -m bench.fleet [--only rolling,scale_down]

Everything runs on this machine: the dev overlay's pods as processes (bench/pods.py), nodes as network namespaces
(bench/nodes.py). Written to out/fleet.json and docs/reliability.md; a part that could not be done says why.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from bench import chaos, fleet_section, simulate
from bench.chaos import FRAME_BYTES, Caller
from bench.nodes import Nodes, usable
from bench.pods import Cluster, Pod
from harness.load import DEADLINE_MS, FRAME_S, read_speech
from harness.local_mesh import ROOT, LocalMesh
from harness.null_mesh import NullMesh
from scripts.check_manifests import K8S, check_documents, kustomizations, render
from services.scaledown.costs import calls_of

OUT = Path("out/fleet.json")
CALLS = 8
HISTORY_S, AFTER_S = 20.0, 8.0
PARTITION_S = 10.0
# Between the nodes: latency in ms, each way, and loss. Within a zone, between zones, and lines nobody should have.
LINKS = ((0.0, 0.0), (1.0, 0.0), (10.0, 0.0), (40.0, 0.0), (1.0, 0.001), (1.0, 0.01), (10.0, 0.01))
LINK_S = 15.0


def lateness_ms(caller: Caller, since: float, until: float = math.inf, usual_until: float | None = None
                ) -> list[float]:
    """How much later than the call's usual pace, that before `usual_until` (else `since`), answers of a time came."""
    offsets = {sequence: at - sequence * FRAME_S for sequence, at in caller.at.items()}
    before = since if usual_until is None else usual_until
    usual = statistics.median(offset for sequence, offset in offsets.items() if caller.at[sequence] < before)
    return [(offset - usual) * 1000 for sequence, offset in offsets.items() if since <= caller.at[sequence] < until]


def late_frames(caller: Caller, since: float, until: float = math.inf, usual_until: float | None = None) -> int:
    """Those that came more than a frame later: a player that holds one frame runs dry."""
    return sum(late_ms > DEADLINE_MS for late_ms in lateness_ms(caller, since, until, usual_until))


@contextlib.asynccontextmanager
async def talking(target: str, calls: int) -> AsyncIterator[list[Caller]]:
    """Live callers, each with some history when the block begins; they go on for a while after it."""
    speech = b"".join(read_speech(ROOT / "samples"))
    frames = [speech[begin:begin + FRAME_BYTES] for begin in range(0, len(speech) - FRAME_BYTES + 1, FRAME_BYTES)]
    people = [Caller(frames[offset:] + frames[:offset]) for offset in range(0, 37 * calls, 37)]
    gateways, until = target.split(","), asyncio.Event()
    tasks = [asyncio.create_task(person.call(",".join(gateways[number % 2:] + gateways[:number % 2]), until))
             for number, person in enumerate(people)]
    try:
        await asyncio.sleep(HISTORY_S)
        yield people
        await asyncio.sleep(AFTER_S)
    finally:
        until.set()
        await asyncio.wait(tasks, timeout=chaos.PATIENCE_S)
        for task in tasks:
            task.cancel()


def told(people: list[Caller], since: float) -> dict[str, Any]:
    """What became of the calls; `frames_late_before` is of as long a time before it, which a busy machine needs to be
    compared with.
    """
    gaps = [person.gap_ms(since) for person in people]
    late = [late_frames(person, since) for person in people]
    before = sum(late_frames(person, 2 * since - person.stopped_at, since, since) for person in people)
    return {"calls": len(people), "calls_lost": sum(bool(person.error) for person in people),
            "errors": sorted({person.error for person in people if person.error}),
            "frames_lost": sum(person.frames_lost for person in people),
            "frames_late": sum(late), "frames_late_of_one_call": max(late), "frames_late_before": before,
            "gap_p50_ms": round(statistics.median(gaps)),
            "gap_p95_ms": round(float(np.percentile(gaps, 95))), "gap_max_ms": round(max(gaps))}


async def renders() -> dict[str, Any]:
    """Each overlay, rendered and compared with the services' own configuration."""
    return {str(folder.relative_to(K8S)): list(check_documents(render(folder))) or "ok" for folder in kustomizations()}


def tests(*which: str) -> Callable[[], Awaitable[str]]:
    """Some tests, as pytest counts them."""
    async def run() -> str:
        done = await asyncio.to_thread(subprocess.run, [sys.executable, "-m", "pytest", "-q", "--durations=0", *which],
                                       cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip().splitlines()[-1]

    return run


async def drains() -> dict[str, Any]:
    """Each service's process is replaced in turn beside engines that compute nothing: what moving alone costs, on a
    machine whose cores are not all taken.
    """
    found = {}
    async with NullMesh(slots=2 * CALLS, replicas=2) as mesh:
        for service, what in (("codec", "codec_and_lm"), ("gateway", "gateway")):  # a null codec has an lm with it
            async with talking(mesh.addresses("gateway"), CALLS) as people:
                since = time.perf_counter()
                await mesh.restart(service)
                await mesh.restart(f"{service}-2")
            found[what] = told(people, since)
    return found


async def gateway_kill() -> dict[str, Any]:
    """kill -9 of a gateway beside engines that compute nothing: noticing, reconnecting, and rows opened anew."""
    async with NullMesh(slots=2 * CALLS, replicas=2) as mesh, talking(mesh.addresses("gateway"), CALLS) as people:
        since = time.perf_counter()
        mesh.processes["gateway"].send(signal.SIGKILL)
    return told(people, since)


async def rolling() -> dict[str, Any]:
    """Every pod of every service is replaced as the manifests say, one after another."""
    async with Cluster(render(K8S / "overlays" / "dev"), replicas=2) as cluster:
        async with talking(cluster.target, CALLS) as people:
            since = time.perf_counter()
            codes = [code for name in ("lm", "codec", "gateway") for code in await cluster.roll(name)]
        return {**told(people, since), "exit_codes": codes}


def killed(service: str) -> Callable[[], Awaitable[int]]:
    """kill -9: the gap p95 in ms."""
    async def run() -> int:
        async with LocalMesh(slots=CALLS, replicas=2) as mesh:
            return round((await chaos.run(mesh, f"{service}_killed", CALLS, HISTORY_S, AFTER_S))["gap_p95_ms"])

    return run


async def held(pod: Pod) -> int:
    """Calls that it says it holds."""
    async with aiohttp.ClientSession() as session, session.get(
            f"http://{pod.address}:{pod.container.ports['metrics']}/metrics") as answer:
        calls = calls_of(await answer.text())
        assert calls is not None
        return calls


async def scale_down() -> dict[str, Any]:
    """One of three language models goes, the one with the fewest calls, as their deletion costs say."""
    replicas = {"redis": 1, "codec": 2, "lm": 3, "gateway": 2}
    async with Cluster(render(K8S / "overlays" / "dev"), replicas) as cluster:
        async with talking(cluster.target, CALLS) as people:
            costs = {pod.name: await held(pod) for pod in cluster.pods["lm"]}
            goes = min(cluster.pods["lm"], key=lambda pod: costs[pod.name])
            since = time.perf_counter()
            code = await cluster.stop(goes)
        return {"costs": costs, "went": goes.name, "exit_code": code, **told(people, since)}


async def partition(calls: int = CALLS) -> dict[str, Any] | str:
    """Two nodes with a replica of each service; the second one is cut off in mid-call, and comes back."""
    if reason := usable():
        return reason
    # Callers and their side of the network are this machine's own; Redis is on the first node.
    with Nodes(2) as nodes:
        async with Cluster(render(K8S / "overlays" / "dev"), replicas=2, nodes=nodes) as cluster:
            async with talking(cluster.target, calls) as people:
                since = time.perf_counter()
                nodes[1].cut_off()
                await asyncio.sleep(PARTITION_S)
                nodes[1].join_again()
                await asyncio.sleep(PARTITION_S)
                owners = sum([await held(pod) for pod in cluster.pods["gateway"]])
            return {**told(people, since), "resumed": sum(len(person.resumed) for person in people),
                    "two_owners": max(owners - calls, 0)}


async def links(calls: int = CALLS, seconds: float = LINK_S) -> list[dict[str, Any]] | str:
    """The same nodes, and a link between them that is slow and loses packets, one sort after another under the same
    calls. Half of the callers reach their gateway over it, and of each call any hop may.
    """
    if reason := usable():
        return reason
    network, times = Nodes(2, bad_link=True), []
    with network as nodes:
        async with (Cluster(render(K8S / "overlays" / "dev"), replicas=2, nodes=nodes) as cluster,
                    talking(cluster.target, calls) as people):
            assert network.link is not None
            usual_until = time.perf_counter()
            for latency_ms, loss in LINKS:
                network.link.be(latency_ms, loss)
                begin, skipped = time.perf_counter(), sum(person.skipped for person in people)
                await asyncio.sleep(seconds)
                times.append((begin, time.perf_counter(), sum(person.skipped for person in people) - skipped))
            network.link.be(0.0, 0.0)
    rows = []
    for (latency_ms, loss), (begin, end, skipped) in zip(LINKS, times, strict=True):
        late = [one for person in people for one in lateness_ms(person, begin, end, usual_until)]
        rows.append({"latency_ms": latency_ms, "loss": loss, "frames": len(late), "frames_skipped": skipped,
                     "frames_late": sum(one > DEADLINE_MS for one in late),
                     "later_p50_ms": round(statistics.median(late)),
                     "later_p99_ms": round(float(np.percentile(late, 99))),
                     "calls_lost": sum(bool(person.error) for person in people)})
    return rows


PARTS: dict[str, Callable[[], Awaitable[Any]]] = {
    "renders": renders,
    "schema": tests("tests/deploy/test_overlays.py", "-k", "schemas or go_together"),
    "policies": tests("tests/deploy/test_overlays.py", "-k", "restricted or policies"),
    "services_from_yaml": tests("tests/bench/test_pods.py"),
    "rolling": rolling,
    "drain_frames_late": drains,
    "null_gateway_kill": gateway_kill,
    "codec_kill_gap_p95_ms": killed("codec"),
    "gateway_kill_gap_p95_ms": killed("gateway"),
    "scale_down": scale_down,
    "partition": partition,
    "links": links,
    "simulation_error": simulate.error_against_one_machine,
}


async def run(names: list[str]) -> dict[str, Any]:
    """Those parts, one after another; a part that fails says how, and the others are done all the same."""
    found = read()
    for name in names:
        try:
            found[name] = await PARTS[name]()
        except Exception as error:
            found[name] = f"failed: {type(error).__name__}: {error}"
        print(name, found[name], flush=True)
        write(found)
    fleet_section.write(found)
    return found


def read() -> dict[str, Any]:
    """What earlier runs have found, of which this one may do some parts again."""
    found: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
    return found


def write(found: dict[str, Any]) -> None:
    """Part by part: a run takes a quarter of an hour, and may be stopped."""
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    names = parser.parse_args().only.split(",")
    if unknown := set(names) - PARTS.keys():
        raise SystemExit(f"fleet: --only knows {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    asyncio.run(run(names))


if __name__ == "__main__":
    main()
