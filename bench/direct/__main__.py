"""`make direct-check`: how conversations can be directed and followed; writes out/direct.json.

    python -m bench.direct [--only user,calls,controls,cost,replay] [--checkpoint checkpoints/talker]

Each part adds its keys and keeps those of the others. The voices and sentences are held out (talker/synth.py), the
noise is of kinds that nothing was learnt from.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import torch

from bench.direct import controls, cost, interruptions, replay, user_speech
from talker import synth
from talker.config import Work

PARTS = ("user", "calls", "controls", "cost", "replay")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--checkpoint", default="checkpoints/talker")
    parser.add_argument("--work", type=Path, default=Path("build/talker"), help="keeps the clips")
    parser.add_argument("--wav", type=Path, default=Path("samples"))
    parser.add_argument("--out", type=Path, default=Path("out/direct.json"))
    parser.add_argument("--seed", type=int, default=1, help="of the calls that are made from the clips")
    parser.add_argument("--replay-s", type=float, default=300.0, help="length of the call that is replayed")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"bench.direct: --only knows {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    synth.build(Work(options.work), 0, 4, splits=("heldout_voice",))
    options.out.parent.mkdir(exist_ok=True)
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    runs = {"user": lambda: user_speech.run(options.checkpoint, options.work, options.seed),
            "calls": lambda: interruptions.run(options.checkpoint, options.work, options.seed),
            "controls": lambda: asyncio.run(controls.run(options.checkpoint)),
            "cost": lambda: asyncio.run(cost.run(options.wav)),
            "replay": lambda: asyncio.run(replay.run(options.replay_s, options.checkpoint))}
    for part in parts:
        results |= runs[part]()
        options.out.write_text(json.dumps(results, indent=1) + "\n")  # minutes of work are not lost with the next part
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
