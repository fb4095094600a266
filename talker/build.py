"""`python -m talker.build --out checkpoints/talker`: the checkpoint from nothing, phase by phase.

Every phase leaves its result in the work folder and is skipped when that is there; a phase that is interrupted goes on
from its last 500 steps.

With `--codec checkpoints/talker` the codec of that folder is kept, and only the language model is trained: minutes
instead of an hour and a half. With `--lm checkpoints/talker`, too, its tokenizer and language model are kept.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("NO_TORCH_COMPILE", "1")  # moshi compiles its norms lazily: 40 s for nothing here

import torch

from talker import (
    codec,
    export,
    speech_table,
    synth,
    tokenizer,
    train_decoder,
    train_encoder,
    train_joint,
    train_lm,
    train_prompts,
)
from talker.config import Budget, Work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("checkpoints/talker"))
    parser.add_argument("--work", type=Path, default=Path("build/talker"))
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--codec", type=Path, help="a checkpoint folder whose codec to keep instead of training one")
    parser.add_argument("--lm", type=Path, help="that of --codec, to keep its language model, too")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    args = parser.parse_args()
    if args.lm and args.lm != args.codec:
        parser.error("--lm needs the --codec that it was trained with")
    torch.set_num_threads(args.threads)
    work, budget, seed = Work(args.work), Budget(), args.seed
    train_codec = [
        ("codec stage 1", lambda: train_encoder.train(work, budget.encoder_steps, seed)),
        ("codec stage 2", lambda: train_decoder.train(work, budget.decoder_steps, seed)),
        ("codec stage 3", lambda: train_joint.train(work, budget.joint_steps, seed)),
    ]
    train_language_model = [
        ("tokenizer", lambda: tokenizer.build(work, seed)),
        ("language model", lambda: train_lm.train(work, budget.lm_steps, budget.dialogues, seed)),
        ("prompts", lambda: train_prompts.train(work, budget.reading_steps, budget.prompted_steps,
                                                budget.prompted_calls, seed)),
    ]
    phases = [
        ("speech", lambda: synth.build(work, budget.speech_min, seed)),
        *([("codec", lambda: codec.adopt(args.codec, work))] if args.codec else train_codec),
        *([("language model", lambda: train_prompts.adopt(args.lm, work))] if args.lm else train_language_model),
        ("export", lambda: export.write(work, args.out, train_prompts.DONE)),
        ("speech table", lambda: speech_table.build(work, str(args.out), seed)),
    ]
    for name, phase in phases:
        begun = time.monotonic()
        phase()
        print(f"{name}: {(time.monotonic() - begun) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
