"""`python -m talker.evaluate`: every figure of the checkpoint, into `out/talk.json` and `docs/talker.md`.

The turn-taking part takes any `converse` (see `loop`), so that it also runs through the mesh.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from pathlib import Path

os.environ.setdefault("NO_TORCH_COMPILE", "1")

import numpy as np
import torch

from talker import card, measure_codec, measure_turns, report, synth
from talker.config import FRAME_SAMPLES, Work
from talker.export import checkpoint, total_bytes
from talker.loop import Answer, Converse, MoshiLoop
from talker.samples import SAMPLES, read_wav
from talker.through_mesh import ThroughMesh

TARGETS = {  # key: (wanted, at least or at most)
    "stoi": (0.84, ">="), "estoi": (0.70, ">="), "stoi_heldout_voice": (0.80, ">="),
    "estoi_heldout_voice": (0.65, ">="), "closed_set": (24, ">="), "wer_open": (0.5, "<="),
    "replies_understood": (5, ">="), "reply_in_window": (0.95, ">="), "quiet_while_user_speaks": (0.95, ">="),
    "stop_within_3": (0.95, ">="), "noise_starts": (0, "<="), "bytes": (15_000_000, "<="), "load_s": (3.0, "<="),
    "ms_per_frame_b1": (26.7, "<="),
}


def speed(folder: Path, frames: int = 150) -> dict:
    """Seconds to load, and ms per frame of one call on one thread (encode, step, decode)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    info = checkpoint(folder)
    info.get_mimi(), info.get_moshi(dtype=torch.float32), info.get_text_tokenizer()
    load_s = time.perf_counter() - begun
    loop, quiet = MoshiLoop(folder), np.zeros(frames * FRAME_SAMPLES, np.float32)
    loop(quiet[: 20 * FRAME_SAMPLES])
    begun = time.perf_counter()
    loop(quiet)
    per_frame = (time.perf_counter() - begun) / frames * 1000
    begun = time.perf_counter()
    loop.batch([quiet[: 50 * FRAME_SAMPLES]] * 16)
    per_caller = (time.perf_counter() - begun) / 50 / 16 * 1000
    torch.set_num_threads(threads)
    return {"load_s": round(load_s, 2), "ms_per_frame_b1": round(per_frame, 2),
            "ms_per_frame_b16_caller": round(per_caller, 2)}


def turns(greedy: Converse, sampled: Converse, work: Work, dialogues: int) -> tuple[dict, list[Answer]]:
    """The turn-taking keys (greedy decoding, as the mesh's test does) and what was said when sampling."""
    figures, _, _ = measure_turns.turn_taking(greedy, work, dialogues)
    figures |= measure_turns.greeting_and_mmhm(greedy, work)
    figures["noise_starts"] = measure_turns.noise_starts(greedy, work)
    again, answers, scripts = measure_turns.turn_taking(sampled, work, max(8, dialogues // 3), seed=78)
    figures["sampled"] = {k: again[k] for k in ("reply_in_window", "quiet_while_user_speaks", "stop_within_3")}
    figures["sampled"]["noise_starts"] = measure_turns.noise_starts(sampled, work)
    silent = [np.zeros(90 * FRAME_SAMPLES, np.float32)] * 2
    for answer in measure_turns.many(sampled, silent, what="greetings"):
        answers.append(answer)
        scripts.append(measure_turns.Script(silent[0], []))
    heard = measure_turns.replies_heard(answers, scripts)
    return figures | heard, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/talker"))
    parser.add_argument("--work", type=Path, default=Path("build/talker"))
    parser.add_argument("--out", type=Path, default=Path("out/talk.json"))
    parser.add_argument("--samples", type=Path, default=Path("samples"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--dialogues", type=int, default=104)
    parser.add_argument("--only", choices=["codec", "turns", "speed", "report"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--through-mesh", action="store_true", help="take turns through a mesh of real processes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work, folder = Work(args.work), args.checkpoint
    synth.build(work, 0, 4, splits=("heldout", "heldout_voice"))
    figures = json.loads(args.out.read_text()) if args.out.exists() and args.only else {}
    greedy = MoshiLoop(folder, greedy=True)
    measure_turns.know_lines(greedy.tokenizer)
    figures["bytes"] = total_bytes(folder)
    if args.only in (None, "speed"):
        figures |= speed(folder)
    if args.only in (None, "codec"):
        figures |= measure_codec.measure(folder, work)
    if args.only in (None, "turns"):
        loop = ThroughMesh if args.through_mesh else MoshiLoop
        with contextlib.ExitStack() as meshes:
            greedily, sampled = loop(folder, greedy=True), loop(folder, greedy=False, seed=1)
            if args.through_mesh:
                greedily, sampled = meshes.enter_context(greedily), meshes.enter_context(sampled)
            figures |= turns(greedily, sampled, work, args.dialogues)[0]
        figures["turns_through"] = "the mesh" if args.through_mesh else "moshi's own loop"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(figures, indent=2) + "\n")
    samples = args.samples
    answers = dict(zip(SAMPLES, greedy.batch([read_wav(samples / f"{name}.wav") for name in SAMPLES]), strict=True))
    card.write(folder, figures, TARGETS)
    report.write(figures, TARGETS, answers, folder, work, args.docs, samples)
    print(json.dumps({k: figures.get(k) for k in TARGETS}, indent=2))


if __name__ == "__main__":
    main()
