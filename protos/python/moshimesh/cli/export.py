"""`moshimesh export`: what the mesh keeps of a conversation, as a file for `moshimesh replay`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from moshimesh.cli.record import Recorder
from moshimesh.cli.secret import handle_of_environment
from moshimesh.client import connect


def add_to(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "export", parents=[common], help="save a conversation as tokens", description="Save what the mesh keeps of a "
        "conversation: its last steps as tokens, as many as the model remembers. The conversation's resume handle "
        "comes from MOSHIMESH_HANDLE or stdin, never from a flag, since ps shows flags.")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--follow", action="store_true", help="go on until the conversation ends, to have all of it")
    parser.set_defaults(run=run)


async def run(options: argparse.Namespace) -> None:
    """Export it."""
    handle = handle_of_environment()
    async with connect(options.target, credentials=options.credentials) as mesh:
        recorder = Recorder(mesh, handle, options.key)
        try:
            await (recorder.follow() if options.follow else recorder.take())
        finally:
            if recorder.recording is not None:
                recorder.recording.save(options.out)
    assert recorder.recording is not None
    print(f"{options.out}: steps {recorder.recording.first_step} to {recorder.recording.next_step - 1}")
