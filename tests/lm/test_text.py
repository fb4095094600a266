"""Text from tokens, also where a character comes as bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
import sentencepiece

from services.lm.text import TextStream

PIECES = ["<epad>", "<s>", "</s>", "<pad>", "▁na", "ve", *(f"<0x{byte:02X}>" for byte in range(256))]
SILENT = (3, 0)
FIRST_BYTE = 6


class Table:
    def id_to_piece(self, token: int) -> str:
        return PIECES[token]


def tokens(*parts: int | bytes) -> list[int]:
    """Tokens as they are and bytes as one token each."""
    return [token for part in parts for token in ([part] if isinstance(part, int) else [FIRST_BYTE + b for b in part])]


def said(tokens: Sequence[int]) -> list[str]:
    stream = TextStream(Table(), SILENT)
    return [stream.say(token) for token in tokens]


@pytest.mark.parametrize(("heard", "expected"), [
    (tokens(4, "ï".encode(), 5), [" na", "", "ï", "ve"]),
    (tokens(4, 3, 0, 5), [" na", "", "", "ve"]),
    (tokens(b"\xc3", 3, 3, b"\xaf"), ["", "", "", "ï"]),  # padding in the middle of a character
    (tokens("🎈".encode()), ["", "", "", "🎈"]),
    (tokens(b"\xc3", 5), ["", "\ufffdve"]),  # broken off by a piece
    (tokens(b"\xc3", "ï".encode(), 5), ["", "\ufffd", "ï", "ve"]),
    (tokens(b"\xaf", 5), ["\ufffd", "ve"]),
    (tokens(b"A\n"), ["A", "\n"]),
], ids=str)
def test_bytes_become_characters(heard: list[int], expected: list[str]) -> None:
    assert said(heard) == expected


def test_a_session_that_moves_says_the_same() -> None:
    heard = tokens(4, "ï".encode(), 5, b"\xc3", 3, "🎈".encode(), 3, 5, b"\xe2\x82", 5)
    whole = said(heard)
    for cut in range(len(heard) + 1):
        stream = TextStream(Table(), SILENT)
        stream.recall([-2, *heard[:cut]])
        assert [stream.say(token) for token in heard[cut:]] == whole[cut:], cut


def test_a_real_tokenizer_with_byte_fallback() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the naive question of a caller"] * 50), model_writer=model, vocab_size=290,
        model_type="bpe", byte_fallback=True, hard_vocab_limit=False, unk_id=0, bos_id=1, eos_id=2, pad_id=3,
        minloglevel=2)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    stream = TextStream(tokenizer, SILENT)
    text = "".join(stream.say(token) for token in tokenizer.encode("the naïve 🎈"))
    assert text == " the naïve 🎈"
