"""`make run`: the mesh on this machine until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time

import grpc

from harness.local_mesh import LocalMesh, MeshDown, bundled_voices
from services.gateway.dev_certificate import cache_folder, dev_certificate

COLOURS = {"redis": 31, "codec": 36, "lm": 35, "gateway": 32}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/talker",
                        help="folder or hub id, such as kyutai/moshiko-pytorch-bf16")
    parser.add_argument("--device", default="cpu", help="torch device: cpu, cuda ...")
    parser.add_argument("--slots", type=int, default=8, help="callers at once")
    parser.add_argument("--port", type=int, default=50050, help="the gateway's port; codec and lm take the next two")
    parser.add_argument("--http-port", type=int, default=8000, help="the port of WebSockets and the page")
    parser.add_argument("--redis-url", default="", help="a running Redis; empty: the one of MOSHIMESH_REDIS_URL, where "
                                                        "no `ps` shows its password, else start one")
    parser.add_argument("--trace", default="", metavar="ENDPOINT", help="OTLP/gRPC endpoint for traces and metrics")
    parser.add_argument("--metrics", type=int, default=0, metavar="PORT",
                        help="serve /metrics of the gateway at this port, of codec and lm at the next two")
    parser.add_argument("--host", default="127.0.0.1", help="where the gateway listens; 0.0.0.0 lets other machines in")
    parser.add_argument("--dev-tls", action="store_true",
                        help="TLS with a certificate of a CA of our own, for this machine's names")
    return parser.parse_args()


def show(name: str, line: str) -> None:
    mark = f"\033[{COLOURS[name]}m{name:>8}\033[0m" if sys.stdout.isatty() else f"{name:>8}"
    print(f"{mark} | {line}", flush=True)


async def main() -> None:
    options = arguments()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    began = time.monotonic()
    redis_url = options.redis_url or os.environ.get("MOSHIMESH_REDIS_URL", "")
    flags, credentials = list(bundled_voices(options.checkpoint)), {}
    if options.dev_tls:
        try:
            ca = dev_certificate(cache_folder()).ca  # the gateway takes the same, and says where it is
        except ValueError as error:
            raise MeshDown(str(error)) from None
        flags, credentials = [*flags, "--dev-tls"], {"gateway": grpc.ssl_channel_credentials(ca.read_bytes())}
    mesh = LocalMesh(options.checkpoint, options.device, options.slots, options.port, options.port + 1,
                     options.port + 2, options.http_port, redis_url, {"MOSHIMESH_OTLP_ENDPOINT": options.trace}, show,
                     gateway_host=options.host, gateway_flags=flags, credentials=credentials)
    if options.metrics:
        mesh.metrics_ports = {name: options.metrics + number for number, name in enumerate(("gateway", "codec", "lm"))}
    stopping = asyncio.ensure_future(stop.wait())
    starting = asyncio.ensure_future(mesh.__aenter__())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    await starting
    try:
        print(f"\nThe mesh is ready after {time.monotonic() - began:.1f} s: talk to it at {mesh.url}, "
              f"call it by gRPC at {mesh.target}. "
              "Try `make demo` in another terminal; Ctrl-C stops everything.\n", flush=True)
        ended = asyncio.ensure_future(mesh.wait_ended())
        await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and not stop.is_set():
            raise MeshDown(f"{ended.result().name} ended: {ended.result().last_line}")
        ended.cancel()
        print("\nstopping", flush=True)
    finally:
        await mesh.__aexit__()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except MeshDown as error:
        raise SystemExit(f"mesh: {error}") from None
