"""dataset.json: what a folder of prepared data holds. Written last, so that a folder with it is whole.

::

    dataset.json     this
    tokenizer.json   byte-level BPE, in the format of the tokenizers library
    request.json     the corpus that was asked for; there from the first moment of preparing on
    train/<source>-<n>.tokens, validation/<source>-<n>.tokens     shards, trainer/data/shards.py
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from trainer.config import CorpusConfig
from trainer.data.files import AGAIN, DataError, write_bytes
from trainer.data.shards import Header

FORMAT = 1
DATASET = "dataset.json"
TOKENIZER = "tokenizer.json"
REQUEST = "request.json"
_LOOKING = 16  # shards that are looked at at once


@dataclass(frozen=True)
class ShardEntry:
    """One shard: its path below the data folder, its size and what is in it."""

    file: str
    bytes: int
    tokens: int
    documents: int
    digest: str

    def look(self, folder: Path, vocab_size: int) -> None:
        """Look at the file's size and header, and at no token.

        Raises:
            DataError: if it is missing, cut, or not the one that is meant.
        """
        path = folder / self.file
        self.compare(Header.read(path), path, vocab_size)

    def compare(self, header: Header, path: Path, vocab_size: int) -> None:
        """
        Raises:
            DataError: if the header of the file at ``path`` is that of another shard.
        """
        if header.digest.hex() != self.digest:
            raise DataError(
                f"{path} is not the shard that {DATASET} speaks of: it belongs to other data, with "
                f"ids up to {header.largest} where the tokenizer has {vocab_size}. {AGAIN}"
            )
        if header.largest >= vocab_size:
            raise unknown_id(path, header.largest, vocab_size)


@dataclass(frozen=True)
class SourceEntry:
    """What one source, such as a language, has in a split."""

    tokens: int
    documents: int
    shards: list[ShardEntry]


@dataclass(frozen=True)
class Manifest:
    """The content of dataset.json."""

    request: dict[str, Any]  # the CorpusConfig that was asked for
    origin: str  # where the text really came from, for people
    vocab_size: int
    eos: int  # id of the token that ends each document
    tokenizer_digest: str
    splits: dict[str, dict[str, SourceEntry]]  # split -> source -> what it has

    @property
    def fingerprint(self) -> str:
        """Equal for two folders only if tokenizer and all tokens are equal, in the same order."""
        parts: list[Any] = [FORMAT, self.vocab_size, self.eos, self.tokenizer_digest]
        for split, sources in sorted(self.splits.items()):
            for source, entry in sources.items():
                parts += [split, source, [(s.tokens, s.documents, s.digest) for s in entry.shards]]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def tokens(self, split: str) -> int:
        return sum(source.tokens for source in self.splits.get(split, {}).values())

    def documents(self, split: str) -> int:
        return sum(source.documents for source in self.splits.get(split, {}).values())

    def shards(self) -> list[ShardEntry]:
        return [s for sources in self.splits.values() for source in sources.values() for s in source.shards]

    def check(self, folder: Path, share: slice = slice(None)) -> None:
        """Look at the size and the header of every shard, and at no token.

        Args:
            share: of the shards, those to look at.

        Raises:
            DataError: naming the first file that is missing, of another size, damaged or of other data.
        """
        shards = self.shards()[share]
        # What takes time is that a shared file system answers, for each file anew.
        with ThreadPoolExecutor(min(_LOOKING, max(1, len(shards)))) as threads:
            for _ in threads.map(lambda shard: shard.look(folder, self.vocab_size), shards):
                pass
        if not (folder / TOKENIZER).is_file():
            raise DataError(f"{folder / TOKENIZER} is missing. {AGAIN}")

    def write(self, folder: Path) -> None:
        document = {"format": FORMAT, "fingerprint": self.fingerprint, **asdict(self)}
        write_bytes(folder / DATASET, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Read dataset.json.

        Raises:
            DataError: if there is none, or none that can be read here.
        """
        file = folder / DATASET
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise DataError(f"{file} has format {document['format']}, and only {FORMAT} can be read here")
            splits = {
                split: {
                    source: SourceEntry(e["tokens"], e["documents"], [ShardEntry(**s) for s in e["shards"]])
                    for source, e in sources.items()
                }
                for split, sources in document["splits"].items()
            }
            values = (document[k] for k in ("request", "origin", "vocab_size", "eos", "tokenizer_digest"))
            manifest = Manifest(*values, splits=splits)
        except DataError:
            raise
        except FileNotFoundError:
            raise DataError(_absent(folder)) from None
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file} is no description of prepared data ({error!r})") from error
        if document.get("fingerprint") != manifest.fingerprint:
            raise DataError(f"{file} was changed by hand: its fingerprint does not match. {AGAIN}")
        return manifest


def unknown_id(path: Path, token: int, vocab_size: int) -> DataError:
    return DataError(
        f"{path} holds token id {token}, and the tokenizer has {vocab_size} ids: the file is damaged. {AGAIN}"
    )


def request_of(corpus: CorpusConfig) -> dict[str, Any]:
    """A corpus configuration as JSON values."""
    return {k: v.name if isinstance(v, Enum) else v for k, v in asdict(corpus).items()}


def _absent(folder: Path) -> str:
    if not folder.exists():
        return f"data.path={folder}: there is no such folder. Make the data with job=prepare"
    if (folder / REQUEST).exists():
        return f"data.path={folder}: preparing this data did not finish. Finish it with job=prepare"
    return f"data.path={folder}: this folder holds no prepared data (no {DATASET}). Make it with job=prepare"
