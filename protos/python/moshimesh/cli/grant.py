"""`moshimesh grant`: let others listen to a call."""

from __future__ import annotations

import argparse
from typing import Any

from moshimesh.cli.secret import handle_of_environment
from moshimesh.client import connect


def add_to(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "grant", parents=[common], help="let others listen to a call", description="Print a grant for `moshimesh "
        "listen` and `moshimesh events`. The call's resume handle comes from MOSHIMESH_HANDLE or stdin, never from a "
        "flag, since ps shows flags.")
    parser.add_argument("--lives", type=float, default=900.0, metavar="SECONDS",
                        help="for how long one may begin to listen with it (default: %(default)g)")
    parser.set_defaults(run=run)


async def run(options: argparse.Namespace) -> None:
    """Print it."""
    async with connect(options.target, credentials=options.credentials) as mesh:
        print(await mesh.grant(handle_of_environment(), lives_s=options.lives, api_key=options.key))
