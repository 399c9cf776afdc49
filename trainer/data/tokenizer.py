"""Byte-level BPE: lossless on any text, one id for the end of a document. Needs the tokenizers library."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.data.files import DataError, write_bytes

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCABULARY = 257  # every byte, and the end of text


class Tokenizer:
    """Text to token ids and back. Text that spells a special token is text, not that token."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.encode_special_tokens = True
        eos = inner.token_to_id(END_OF_TEXT)
        if eos is None:
            raise DataError(f"this tokenizer has no token {END_OF_TEXT}")
        self._inner = inner
        self.eos: int = eos

    @property
    def vocab_size(self) -> int:
        return self._inner.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """As ``encode`` for each text, on all cores."""
        return [e.ids for e in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens; bytes that are no whole character come out as U+FFFD."""
        return self._inner.decode(list(ids), skip_special_tokens=False)

    def to_bytes(self) -> bytes:
        return self._inner.to_str(pretty=True).encode()

    def digest(self) -> str:
        return hashlib.blake2b(self.to_bytes(), digest_size=16).hexdigest()

    def save(self, path: Path) -> None:
        write_bytes(path, self.to_bytes())

    @staticmethod
    def load(path: Path) -> Tokenizer:
        """Read a tokenizer.json.

        Raises:
            DataError: if there is none, or it cannot be read as one.
        """
        inner = _library().Tokenizer
        try:
            return Tokenizer(inner.from_str(path.read_text(encoding="utf-8")))
        except Exception as error:  # the library raises Exception itself
            raise DataError(f"cannot read the tokenizer {path}: {error}") from error

    @staticmethod
    def train(texts: Iterable[str] | Iterator[str], vocab_size: int) -> Tokenizer:
        """Train on texts; the same texts in the same order give the same tokenizer.

        Args:
            texts: documents; they are read once.
            vocab_size: ids to use at most, END_OF_TEXT included; little text gives fewer.

        Raises:
            DataError: if ``vocab_size`` cannot hold every byte, or the library is missing.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise DataError(
                f"data.corpus.vocab_size={vocab_size}: must be at least {SMALLEST_VOCABULARY}, "
                f"every byte and {END_OF_TEXT}"
            )
        library = _library()
        inner = library.Tokenizer(library.models.BPE())
        inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        inner.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(iter(texts), trainer)
        return Tokenizer(inner)


def _library():
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise DataError("the Python package tokenizers is missing. Type: pip install 'hpc[train]'") from error
    return tokenizers
