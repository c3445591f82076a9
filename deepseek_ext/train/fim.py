"""Fill-in-the-middle: some documents are read as prefix, suffix, middle (paper, section 4.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from .corpus import Document
from .shards import Tokens
from .tokenizer import FIM_NAMES, eos_id


def fim_ids(tokenizer: Tokenizer) -> tuple[int, int, int]:
    """The ids of the tokens that begin a rearranged document, stand for its hole, and end its context.

    Raises ValueError for a tokenizer that has no such tokens.
    """
    for names in FIM_NAMES:
        begin, hole, end = (tokenizer.token_to_id(name) for name in names)
        if begin is not None and hole is not None and end is not None:
            return begin, hole, end
    raise ValueError(
        f"--fim-rate needs a tokenizer with the tokens {', '.join(FIM_NAMES[0])}; add them to it as special "
        "tokens, or write --fim-rate 0"
    )


class FillInTheMiddle:
    """Which documents read as <|fim_begin|>pre<|fim_hole|>suf<|fim_end|>middle<|eos|> in an epoch, and how.

    A share `rate` of them, drawn anew each epoch, is cut before two of its characters or at its end. What is
    drawn depends on the seed, the document's name and the epoch alone.
    """

    def __init__(
        self, documents: Sequence[Document], tokenizer: Tokenizer, *, rate: float, seed: int
    ) -> None:
        self.documents = documents
        self.tokenizer = tokenizer
        self.rate = rate
        self.seed = seed
        self.begin, self.hole, self.end = fim_ids(tokenizer)
        self.eos = eos_id(tokenizer)

    def __call__(self, epoch: int) -> dict[int, Tokens]:
        """The rearranged documents of this epoch, by index."""
        chosen = {i: cut for i, document in enumerate(self.documents) if (cut := self._cut(document, epoch))}
        parts: list[str] = []
        for i, (a, b) in chosen.items():
            text = self.documents[i].text
            parts += [text[:a], text[b:], text[a:b]]
        encoded = [e.ids for e in self.tokenizer.encode_batch_fast(parts, add_special_tokens=False)]
        return {
            i: np.array(
                [self.begin, *prefix, self.hole, *suffix, self.end, *middle, self.eos], dtype=np.int32
            )
            for i, prefix, suffix, middle in zip(
                chosen, encoded[0::3], encoded[1::3], encoded[2::3], strict=True
            )
        }

    def _cut(self, document: Document, epoch: int) -> tuple[int, int] | None:
        """Where the middle begins and ends, in characters; None if the document stays as it is."""
        digest = hashlib.sha256(f"{self.seed} fim {epoch} {document.name}".encode()).digest()
        draw, first, second = (int.from_bytes(digest[i : i + 8], "little") for i in (0, 8, 16))
        if draw >= self.rate * 2**64 or not document.text:
            return None
        # Two different ones of the n + 1 places before, between and after the characters.
        a = first % (len(document.text) + 1)
        b = second % len(document.text)
        return min(a, b + (b >= a)), max(a, b + (b >= a))
