"""Prints what each GPU holds of a model, and the least that a step on it can take.

    python -m scripts.plan [--checkpoint DIR] [--contexts 750,3000]

Slots follow from memory alone, and the floor from what a step has to read and the memory's peak bandwidth: nothing is
measured. No weights are read: without --checkpoint it is the shape of Moshi's own 7 B.
"""

from __future__ import annotations

import argparse

from moshi.models import loaders

from services.lm.config import MOST_SLOTS
from services.lm.plan import plan, shape_of, table
from services.mesh.checkpoint import lm_config, resolve

CONTEXTS = (750, 1500, 3000)  # 1, 2 and 4 minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder or hub id; by default the shape of Moshi's own 7 B")
    parser.add_argument("--contexts", type=lambda text: [int(part) for part in text.split(",")],
                        help="frames that a session remembers, for example 750,3000")
    options = parser.parse_args()
    lm = shape_of(lm_config(resolve(options.checkpoint)) if options.checkpoint else loaders._lm_kwargs)
    contexts = options.contexts or [*(frames for frames in CONTEXTS if frames < lm.context), lm.context]
    if not all(1 <= frames <= lm.context for frames in contexts):
        parser.error(f"--contexts must be between 1 and {lm.context}, what the checkpoint was trained with")
    print(table(plan(lm, contexts)))
    print(f"\nSlots: at most {MOST_SLOTS}, by memory alone. The floor is what a step of all of them with full windows "
          "reads, at the\nmemory's peak bandwidth: no measurement. A frame has 80 ms.")


if __name__ == "__main__":
    main()
