"""`moshimesh events`: what happens in a call, line by line."""

from __future__ import annotations

import argparse
from typing import Any

from moshimesh.cli.output import Output
from moshimesh.cli.secret import grant_of_environment
from moshimesh.client import connect
from moshimesh.events import ConversationEvent
from moshimesh.listening import CallOver, Missed


def add_to(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "events", parents=[common], help="print what happens in a call", description="Print the events of a live call, "
        "from now on: who starts and stops to speak, and more. Its grant (see `moshimesh grant`) comes from "
        "MOSHIMESH_GRANT or stdin, never from a flag, since ps shows flags.")
    parser.set_defaults(run=run)


async def run(options: argparse.Namespace) -> None:
    """Print them until the call is over."""
    output = Output(options.json, True)
    async with connect(options.target, credentials=options.credentials) as mesh:
        async for item in mesh.listen(grant_of_environment(), audio=False, api_key=options.key):
            if isinstance(item, ConversationEvent | Missed | CallOver):
                output.show(item)
