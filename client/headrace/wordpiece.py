"""WordPiece for parts of printable ASCII: the longest piece of the vocabulary, then the next.

What ``tokenizers.models.WordPiece`` does (and Google's BERT before it), for many parts at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from headrace.kernels.words import piece_together
from headrace.wordtable import MAX_WORD_BYTES, WordTable, readable


class WordPiece:
    """Tokenizes parts as the model of ``tokenizer`` does.

    Args:
        tokenizer: one with a WordPiece model, whose vocabulary has the unknown token.

    Raises:
        ValueError: the vocabulary has a piece that is too long for this.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        model: Any = tokenizer.model
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        prefix = model.continuing_subword_prefix
        rest = {
            piece.removeprefix(prefix): number
            for piece, number in vocabulary.items()
            if piece.startswith(prefix)
        }
        self._starts, self._start_ids = _table(vocabulary)
        self._rest, self._rest_ids = _table(rest)
        self._unknown = vocabulary[model.unk_token]
        self._most_bytes = model.max_input_chars_per_word

    def tokenize(
        self, data: NDArray[np.uint8], edges: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Returns the ids of all parts, one after the other, and how many each part has.

        Args:
            data: uint8[bytes]; printable ASCII.
            edges: int64[parts + 1]; part ``i`` is the bytes ``edges[i]`` to ``edges[i + 1]``. A
                part that is a space has no ids.
        """
        ids = np.empty(len(data), np.int32)
        lengths = np.empty(len(edges) - 1, np.int64)
        count = piece_together(
            readable(data),
            edges,
            self._starts.arrays,
            self._start_ids,
            self._rest.arrays,
            self._rest_ids,
            self._unknown,
            self._most_bytes,
            ids,
            lengths,
        )
        return ids[:count], lengths


def _table(pieces: dict[str, int]) -> tuple[WordTable, NDArray[np.int32]]:
    known = {
        piece.encode(): number for piece, number in pieces.items() if piece and piece.isascii()
    }
    if any(len(piece) > MAX_WORD_BYTES for piece in known):
        raise ValueError(f"a piece of more than {MAX_WORD_BYTES} bytes")
    table = WordTable()
    edges = np.cumsum([0, *map(len, known)], dtype=np.int64)
    table.number(np.frombuffer(b"".join(known), np.uint8), edges)
    return table, np.array([*known.values()], np.int32)
