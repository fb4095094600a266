"""`moshimesh COMMAND`: one file here for each command."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
from moshimesh.cli import call, events, export, forget, grant, info, listen, replay, talk, top
from moshimesh.cli.output import CommandFailed
from moshimesh.events import MeshError

Command = Callable[[argparse.Namespace], Coroutine[Any, Any, None]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="moshimesh", description="Talk to a mesh of Moshi, and look at it.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (talk, call, info, top, grant, listen, events, export, forget, replay):
        module.add_to(commands, _common())
    return parser


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--target", default=os.environ.get("MOSHIMESH_TARGET", "localhost:50050"), metavar="HOST:PORT",
                        help="a gateway, or several separated by commas; also MOSHIMESH_TARGET (default: %(default)s)")
    common.add_argument("--key-file", type=Path, metavar="FILE",
                        help="file with the API key; or the key itself in MOSHIMESH_KEY. Never a flag: ps shows flags")
    common.add_argument("--tls", action="store_true", help="speak TLS, with the system's certificate authorities")
    common.add_argument("--ca", type=Path, metavar="FILE", help="speak TLS, with this certificate authority (PEM)")
    common.add_argument("--json", action="store_true", help="one JSON object a line instead of text")
    return common


def key_of(options: argparse.Namespace) -> str:
    """The API key, from the file or the environment; empty for none. Raises CommandFailed."""
    if options.key_file is None:
        return os.environ.get("MOSHIMESH_KEY", "")
    return str(_read(options.key_file).decode().strip())


def credentials_of(options: argparse.Namespace) -> grpc.ChannelCredentials | None:
    """How to speak TLS; None for plain text. Raises CommandFailed."""
    if options.ca is not None:
        return grpc.ssl_channel_credentials(_read(options.ca))
    return grpc.ssl_channel_credentials() if options.tls else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandFailed(f"{path} can't be read: {error.strerror}") from None


def main() -> None:
    """Run a command. Ends with 1 and one line when it fails."""
    options = _parser().parse_args()
    try:
        options.key, options.credentials = key_of(options), credentials_of(options)
        asyncio.run(options.run(options))
    except (CommandFailed, ValueError) as error:
        sys.exit(f"moshimesh: {error}")
    except MeshError as error:
        sys.exit(f"moshimesh: {_help_for(error, options.target)}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help_for(error: MeshError, target: str) -> str:
    """What went wrong, and what to do."""
    if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
        return (f"nobody answers at {target}; start a mesh with `make run`, or name one with --target (with --tls or "
                "--ca if it speaks TLS)")
    again = f"; try again in {error.retry_after_s:g} s" if error.retry_after_s else ""
    return f"{error.message} ({error.reason or error.code.name}){again}"


