"""The SentencePiece model of the text stream: exactly TEXT_CARD pieces, 0 = EPAD (unk), 3 = PAD as in Moshi."""

from __future__ import annotations

import io

import sentencepiece

from talker import texts
from talker.config import EPAD, PAD, TEXT_CARD, TOKENIZER_NAME, Work


def build(work: Work, seed: int) -> None:
    """Train on the grammar's sentences and, many times over, the replies, so that their words become single pieces."""
    target = work.path(TOKENIZER_NAME)
    if target.exists():
        return
    lines = texts.training_sentences(3000, seed) + texts.LINES * 200
    # the longer words of the lines become pieces of their own: one token a word, as Moshi's text mostly has
    whole = sorted({"\u2581" + w.strip(".,?") for line in texts.LINES for w in line.split() if len(w) > 3})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=TEXT_CARD, model_type="unigram",
        unk_id=EPAD, bos_id=1, eos_id=2, pad_id=PAD, unk_surface="", character_coverage=1.0, num_threads=1,
        user_defined_symbols=whole, minloglevel=2,
        normalization_rule_name="identity",  # the default brings 240 kB of Unicode tables
    )
    target.write_bytes(model.getvalue())


def load(work: Work) -> sentencepiece.SentencePieceProcessor:
    """The trained tokenizer."""
    return sentencepiece.SentencePieceProcessor(str(work.path(TOKENIZER_NAME)))
