"""Text tokens to text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterable
from typing import Protocol

# What SentencePiece calls the piece of one byte, for characters that have no piece of their own.
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


class PieceTable(Protocol):
    """What the text tokenizer must do: turn one token into its piece."""

    def id_to_piece(self, token: int) -> str:
        """The piece, with U+2581 for a space."""


class TextStream:
    """What one session says, token by token.

    A character that comes as bytes is said with its last one; bytes that make no character become U+FFFD. What is kept
    between two tokens is a function of those before, so a session that moves is `recall`ed.
    """

    def __init__(self, pieces: PieceTable, silent: Collection[int]) -> None:
        """`silent` are the tokens of padding, which say nothing."""
        self._pieces, self._silent = pieces, silent
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def say(self, token: int) -> str:
        """The text that the token completes; empty for padding and in the middle of a character."""
        if token in self._silent:
            return ""
        piece = self._pieces.id_to_piece(token)
        if byte := BYTE_PIECE.fullmatch(piece):
            return self._bytes.decode(bytes.fromhex(byte[1]))
        broken_off = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return broken_off + piece.replace("▁", " ")

    def recall(self, tokens: Iterable[int]) -> None:
        """Take in tokens that another replica said; negative ones are not tokens."""
        for token in tokens:
            if token >= 0:
                self.say(token)
