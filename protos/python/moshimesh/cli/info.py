"""`moshimesh info`: which models the mesh serves, and its room."""

from __future__ import annotations

import argparse
import json
from typing import Any

from moshimesh.client import connect


def add_to(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command."""
    parser = commands.add_parser("info", parents=[common], help="the models of a mesh, and its free slots")
    parser.set_defaults(run=run)


async def run(options: argparse.Namespace) -> None:
    """Print a line for each model."""
    async with connect(options.target, credentials=options.credentials) as mesh:
        models = await mesh.models(api_key=options.key)
    if options.json:
        for model in models:
            print(json.dumps(vars(model)))
        return
    width = max((len(model.model_id) for model in models), default=0)
    for model in models:
        frame_ms = 1000 * model.samples_per_frame / model.sample_rate_hertz
        print(f"{model.model_id:{width}}  {model.slots_free} of {model.slots_total} slots free  "
              f"{model.sample_rate_hertz} Hz, frames of {frame_ms:g} ms, codec {model.codec_id}")
