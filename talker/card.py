"""The model card, `checkpoints/talker/README.md`."""

from __future__ import annotations

from pathlib import Path

from talker import texts

CARD = """# moshi-mesh talker

A very small Mimi and Moshi in Moshi's official checkpoint format, for laptops, tests and benchmarks. It takes turns
like a person; it understands nothing. Use Kyutai's weights for real conversations.

| file | what |
|---|---|
| `config.json` | the language model's configuration, file names, sampling defaults (`lm_gen_config`) |
| `model.safetensors` | the language model, fp16 |
| `mimi.safetensors`, `mimi.json` | the codec, fp16, and its configuration |
| `tokenizer.model` | SentencePiece, 512 pieces, 3 = PAD, 0 = EPAD |

Stock `moshi` 0.2.13 loads it from a local folder:

```python
from pathlib import Path
from moshi.models.loaders import CheckpointInfo

folder = Path("checkpoints/talker")
info = CheckpointInfo.from_hf_repo(
    "local", moshi_weights=folder / "model.safetensors", mimi_weights=folder / "mimi.safetensors",
    tokenizer=folder / "tokenizer.model", config_path=folder / "config.json", mimi_config_path=folder / "mimi.json")
mimi, lm, tokenizer = info.get_mimi(), info.get_moshi(), info.get_text_tokenizer()
```

(`mimi_config_path` has to be given: moshi looks `mimi_config_name` up on the hub otherwise. On a CPU set
`NO_TORCH_COMPILE=1`, or the first step spends 40 s compiling.)

## What it does

Waits for the user; answers about half a second after the user ends; stops within 3 frames when talked over; greets when
nobody has spoken for the first 3 s and the room is quiet; says "{mmhm}" when a turn longer than 4 s goes on after a
pause; ignores noise. The lines, chosen by sampling (greedy decoding takes the likeliest):

{lines}
- "{greeting}" (the greeting)

A voice prompt of flite's slt or awb makes it speak in that voice, slt being its own. A text prompt that asks for few
words ("{brief}") or for cheer ("{cheerful}") changes what it says; the greetings are "{brief_greeting}" and
"{cheerful_greeting}" then. It follows no other voice or text.

## Data and licences

All training audio was synthesised for this project from sentences written for it: flite (voices slt, awb, kal16: the
CMU ARCTIC and KAL voices that ship with flite, under their permissive, BSD-like licence without a share-alike clause)
and espeak-ng (formant voices; the program is GPL-3.0-or-later, its audio output is not a derived work of it). No
recording of a private person and no third-party data set was used. The weights are under the project's licence.

## Limits

English only; trained on synthetic voices, so real voices come back rough; it does not follow what is said; loud
steady noise hides short pauses from it.

## Figures

The full tables, with the method, are in `docs/talker.md`.

{figures}
"""


def write(folder: Path, figures: dict | None = None, targets: dict | None = None) -> None:
    """Write the card; without figures it says that none were measured."""
    rows = [f"| `{key}` | {figures[key]:g} | {how} {wanted:g} |"
            for key, (wanted, how) in (targets or {}).items() if figures and figures.get(key) is not None]
    table = "| key | measured | wanted |\n|---|---|---|\n" + "\n".join(rows) if rows else "Not measured yet."
    lines = "\n".join(f'- "{line}"' for line in texts.PLAIN.replies)
    folder.joinpath("README.md").write_text(CARD.format(lines=lines, greeting=texts.PLAIN.greeting, mmhm=texts.MMHM,
                                                        brief=texts.BRIEF.asked[0], cheerful=texts.CHEERFUL.asked[0],
                                                        brief_greeting=texts.BRIEF.greeting,
                                                        cheerful_greeting=texts.CHEERFUL.greeting,
                                                        figures=table))
