"""`moshimesh forget`: end a conversation and erase it."""

from __future__ import annotations

import argparse
from typing import Any

from moshimesh.cli.secret import handle_of_environment
from moshimesh.client import connect


def add_to(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "forget", parents=[common], help="end and erase a conversation", description="End a conversation, wherever it "
        "is held, and erase what the mesh keeps of it. Its resume handle comes from MOSHIMESH_HANDLE or stdin, never "
        "from a flag, since ps shows flags.")
    parser.set_defaults(run=run)


async def run(options: argparse.Namespace) -> None:
    """Forget it."""
    async with connect(options.target, credentials=options.credentials) as mesh:
        await mesh.forget(handle_of_environment(), api_key=options.key)
    print("forgotten")
