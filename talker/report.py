"""`docs/talker.md`: the tables, pictures and links that a reader of the figures wants."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from talker.config import FRAME_SAMPLES, LM_CONFIG, MIMI_CONFIG, PAD, SAMPLE_RATE_HZ, Work
from talker.export import checkpoint
from talker.loop import Answer
from talker.measure_codec import through
from talker.samples import read_wav, write_wav
from talker.stream import Speech

MEANING = {
    "stoi": "STOI, held-out sentences in known voices", "estoi": "ESTOI, the same",
    "stoi_heldout_voice": "STOI, held-out sentences in held-out voices", "estoi_heldout_voice": "ESTOI, the same",
    "closed_set": "of 25 held-out sentences, picked from all 25 after the codec (likeliest to tiny.en)",
    "wer_open": "open-vocabulary word error rate after the codec (tiny.en)",
    "replies_understood": "kinds of line that tiny.en writes down word for word",
    "reply_in_window": "replies that start within -3..+5 frames of the rule",
    "quiet_while_user_speaks": "user turns in which the talker keeps quiet",
    "stop_within_3": "barge-ins after which it is silent within 3 frames",
    "noise_starts": "times it starts to speak in 10 minutes of white, pink and babble noise",
    "bytes": "size of the checkpoint folder", "load_s": "seconds to load with stock moshi",
    "ms_per_frame_b1": "ms per 80 ms frame, one call, one thread (encode + step + decode)",
}


def _spectrogram(axis, pcm: np.ndarray, title: str) -> None:
    axis.specgram(pcm + 1e-6, NFFT=768, Fs=SAMPLE_RATE_HZ, noverlap=576, vmin=-140, vmax=-45, cmap="magma")
    axis.set_ylim(0, 8000)
    axis.set_ylabel("Hz")
    axis.set_title(title, loc="left", fontsize=9)


def codec_picture(folder: Path, work: Work, img: Path) -> None:
    """Before and after the codec: one known and one held-out voice."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    mimi = checkpoint(folder).get_mimi()
    figure, axes = plt.subplots(2, 2, figsize=(11, 5), sharey=True)
    for column, (split, index) in enumerate((("heldout", 2), ("heldout_voice", 0))):
        speech = Speech(work, split)
        clean, clip = speech.clip(index), speech.clips[index]
        coded = through(mimi, clean)
        _spectrogram(axes[0, column], clean, f"{clip.voice}: {clip.text}")
        _spectrogram(axes[1, column], coded, "after the codec, 8 codebooks at 12.5 Hz")
        write_wav(img / f"talker-{split}-original.wav", clean)
        write_wav(img / f"talker-{split}-coded.wav", coded)
    figure.tight_layout()
    figure.savefig(img / "talker-codec.png", dpi=70)
    plt.close(figure)


def dialogue_picture(pcm: np.ndarray, answer: Answer, words: list[tuple[int, str]], target: Path, title: str) -> None:
    """User above, talker below, the text tokens over the frames they came in."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(11, 4.6), sharex=True)
    _spectrogram(axes[0], pcm, f"{title}: the user")
    _spectrogram(axes[1], answer.pcm[: len(pcm)], "the talker")
    for frame, piece in words:
        axes[1].text(frame * FRAME_SAMPLES / SAMPLE_RATE_HZ, 5000, piece.replace("\u2581", ""), color="white",
                     fontsize=7, rotation=45)
    axes[1].set_xlabel("s")
    figure.tight_layout()
    figure.savefig(target, dpi=70)
    plt.close(figure)


def _value(v: object) -> str:
    if v is None:
        return "not measured"
    return f"{v:,}" if isinstance(v, int) else f"{v:.3f}".rstrip("0").rstrip(".") if isinstance(v, float) else str(v)


def write(figures: dict, targets: dict, answers: dict[str, Answer], folder: Path, work: Work, docs: Path,
          samples: Path) -> None:
    """Pictures, WAVs and the page."""
    img = docs / "img"
    img.mkdir(parents=True, exist_ok=True)
    tokenizer = checkpoint(folder).get_text_tokenizer()
    codec_picture(folder, work, img)
    for name in ("demo", "interrupt"):
        words = [(i, tokenizer.id_to_piece(t)) for i, t in enumerate(answers[name].frames) if t > PAD]
        asked = read_wav(samples / f"{name}.wav")
        dialogue_picture(asked, answers[name], words, img / f"talker-{name}.png", name)
        write_wav(img / f"talker-{name}-answer.wav", answers[name].pcm[: len(asked)])
    rows = []
    for key, (wanted, how) in targets.items():
        value = figures.get(key)
        met = value is not None and (value >= wanted if how == ">=" else value <= wanted)
        verdict = "yes" if met else "**no**"
        rows.append(f"| `{key}` | {MEANING[key]} | {how} {_value(wanted)} | {_value(value)} | {verdict} |")
    lines = [f"| {line} | {'yes' if v['word_for_word'] else 'no'} | {' / '.join(v['heard'])} |"
             for line, v in figures.get("lines", {}).items()]
    said = [f"| [`{name}.wav`](../samples/{name}.wav) | {answer.text or '(nothing)'} |"
            for name, answer in answers.items()]
    sampled = figures.get("sampled", {})
    docs.joinpath("talker.md").write_text(PAGE.format(
        rows="\n".join(rows), lines="\n".join(lines), said="\n".join(said), dialogues=figures.get("dialogues"),
        turns=figures.get("turns"), barge_ins=figures.get("barge_ins"), delay=_value(figures.get("reply_delay_s")),
        pesq=_value(figures.get("pesq")), pesq_voice=_value(figures.get("pesq_heldout_voice")),
        wer_original=_value(figures.get("wer_original")), closed_voice=_value(figures.get("closed_set_heldout_voice")),
        wer_voice=_value(figures.get("wer_open_heldout_voice")),
        wer_original_voice=_value(figures.get("wer_original_heldout_voice")),
        greeted=_value(figures.get("greeted")), mmhm=_value(figures.get("mmhm_in_long_turns")),
        finished=f"{figures.get('replies_finished', float('nan')):.0%}".replace("%", " %"),
        through=figures.get("turns_through", "moshi's own loop"), b16=_value(figures.get("ms_per_frame_b16_caller")),
        kinds=figures.get("kinds_said"),
        s_window=_value(sampled.get("reply_in_window")), s_quiet=_value(sampled.get("quiet_while_user_speaks")),
        s_stop=_value(sampled.get("stop_within_3")), s_noise=_value(sampled.get("noise_starts")),
        dim=LM_CONFIG["dim"], layers=LM_CONFIG["num_layers"], context=LM_CONFIG["context"],
        depth=LM_CONFIG["depformer_dim"], bins=MIMI_CONFIG["quantizer"]["bins"],
        filters=MIMI_CONFIG["seanet"]["n_filters"],
    ))


PAGE = """# The talker: a small checkpoint that holds a conversation

`checkpoints/talker` is a Mimi ({filters} base filters, 8 codebooks of {bins}) and a Moshi (dim {dim}, {layers} layers,
depth transformer {depth} x 1, context {context} frames) trained from nothing on synthetic speech, in Moshi's own
checkpoint format. It knows no facts. It knows when to speak: it waits for you, answers half a second after you end
with one of six lines, stops when you talk over it, greets you when nobody has spoken for 3 s, and says "mm-hm" when a
long turn goes on after a pause. Its purpose is that every laptop, test and benchmark has a conversation to work with.

`python -m talker.build` trains it again (phases are resumable); `python -m talker.evaluate` wrote this page.

## Figures

| key | what it is | wanted | reached | met |
|---|---|---|---|---|
{rows}

Turn-taking: {dialogues} scripted 22 s calls, {turns} user turns, {barge_ins} barge-ins, in voices and with sentences
that no training saw, decoded greedily; the median reply is heard {delay} s after the user's last frame. The same with
sampling (temperature 0.7): in the window {s_window}, quiet {s_quiet}, stopped {s_stop}, starts in noise {s_noise}.
Silent calls greeted: {greeted}. Long turns that got an "mm-hm": {mmhm}. Stopping is not breaking off: of the replies
that nobody talked over, {finished} were said to their last word.

Codec: PESQ-wb {pesq} (held-out voices {pesq_voice}). tiny.en's word error rate on the untouched recordings is
{wer_original} (held-out voices {wer_original_voice}); after the codec, in held-out voices, {wer_voice}, closed set
{closed_voice} of 25. Speed: {b16} ms per frame and caller at batch 16 on one thread.

Turn-taking here ran through {through}; `talker.measure_turns` takes any `converse`, so that the same scripts run
through the mesh (`--through-mesh`) and through moshi's own loop.

## What it says

Under sampling {kinds} kinds of line were heard. What tiny.en made of up to three instances of each:

| line | word for word | heard |
|---|---|---|
{lines}

Greedy answers to the shipped samples:

| sample | answer |
|---|---|
{said}

![demo.wav and the answer](img/talker-demo.png)

[Listen to the answer](img/talker-demo-answer.wav).

![A barge-in: the reply stops](img/talker-interrupt.png)

[Listen to the answer](img/talker-interrupt-answer.wav).

## The codec

![Before and after the codec](img/talker-codec.png)

Known voice: [original](img/talker-heldout-original.wav), [coded](img/talker-heldout-coded.wav). Held-out voice:
[original](img/talker-heldout_voice-original.wav), [coded](img/talker-heldout_voice-coded.wav).

## How it was made

1. **Speech** (`synth`, `texts`): 98 minutes from flite (slt, awb, kal16) and eight espeak-ng voices reading sentences
   of a small grammar, with speed, pitch and tempo varied. flite rms and two espeak-ng voices are held out, and so are
   42 hand-written sentences.
2. **Codec** (`train_encoder`, `train_decoder`, `train_joint`): first encoder and quantiser with a throw-away head that
   reads spectra from the codes; then the decoder from cached codes; then both together.
   Data-dependent initialisation (LSUV) is what makes a 16-filter SEANet learn at all.
3. **Language model** (`dialogues`, `train_lm`): simulated 24 s calls in which a rule-following talker meets a user who
   pauses, goes on, interrupts, stays silent; 40 % with echo of the talker's own voice, some with room noise, 12 % noise
   alone. Input codes are corrupted slightly so that one odd sample doesn't derail a reply. After an interruption the
   model's own past is often made to go on for up to 8 frames of the line that should have ended (`overrun`), while
   silence stays what is wanted. Trained on spotless pasts alone, a model that missed the one frame in which to stop
   talked on, since half a line is best continued by its other half: it stopped within 3 frames in 43 % of cases.

`python -m talker.build --codec checkpoints/talker` keeps the committed codec and makes the language model again.

## Prompts

A call may begin with a recording of one of two voices (flite's slt, which it has without one, and awb; `make run`
offers both, from `samples/voices`), with a text that asks for a brief or a cheerful manner, or with both, laid out as
`services/lm/prompts.py` lays them out. The voice is that of all it says; the manner decides what it greets with and
what it answers. It knows no other voice, and other texts should change nothing. Texts that ask for a manner have up
to 31 characters, which is what `config.json` says of them (`text_prompt_characters`).

`python -m talker.measure_prompts` measures it: 96 greedy calls through the mesh, half of them silent, with recordings
and sentences that no training had.

| what was asked for | calls | in how many it came | wanted |
|---|---|---|---|
| a voice, by the pitch of the answer (a coin gives 0.5) | 64 | 1 | 0.9 |
| no voice: slt | 32 | 1 | 0.95 |
| a manner, in words of the training | 36 | 0.944 | 0.9 |
| a manner, in other words | 36 | 0.889 | |
| nothing, in any words: the lines as without a prompt | 18 | 0.889 | |

The model remembers 20 s: behind that, what it has said takes the place of the prompt. In eight calls of 48 s (four
times `demo.wav`), all with a voice kept it to the end, and four of five with a text kept their manner; one went back to
the usual lines after its third.

It is the last phase of the build (`train_prompts`): the finished language model first reads, for 200 steps, and then
has 600 steps of whole calls with and without prompts. Reading is of short calls in which most of the loss is on where
lines begin: on the first text token for the manner, on the first code for the voice. They come in pairs, the same
call behind the same text in both voices, so that the voice's recording is all that tells them apart; and in 40 % of
them a third of its own past is random, since otherwise the line so far tells the voice and nobody need look back at
the prompt. Whole calls alone had taught the model that it had been told something, but not what: one text token in
seventy frames depends on it, and the right manner's share of that token stayed near 0.6; voices stayed at 0.66 by
pitch, where 0.5 is chance. 150 steps of reading texts brought the manner's share to 0.98; 75 steps of reading pairs
brought the right voice's share of a line's first code from 0.57 to 0.98, and in recordings that were kept out, all
first codes were of the right voice after 125.

The committed weights had these phases one by one, as they were found, and not in one run: 900 steps of whole calls,
150 of reading texts, 175 of reading pairs, 200 of whole calls with a falling learning rate.
"""
