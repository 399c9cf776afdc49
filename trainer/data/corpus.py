"""Text to train on: a corpus is documents, each of a source such as a language."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer.config import CorpusConfig, CorpusSource
from trainer.data.files import DataError


@dataclass(frozen=True)
class Document:
    """One text of a source; the source's name is part of file names."""

    source: str
    text: str


class Corpus(Protocol):
    """Text that is on this machine; ``documents`` may be walked more than once, always in the same order."""

    origin: str  # where it came from, for people

    def documents(self) -> Iterator[Document]: ...


class Files:
    """One's own UTF-8 text files: one document per file, its source is the name of the file's folder."""

    def __init__(self, patterns: list[str]) -> None:
        """Find the files.

        Args:
            patterns: globs; "~" and "**" work.

        Raises:
            DataError: if there is no pattern, or one that matches no file.
        """
        if not patterns:
            raise DataError(
                "data.corpus.files=[]: name the text files of data.corpus.source=files, "
                "such as data.corpus.files=[/path/to/texts/**/*.txt]"
            )
        found: set[Path] = set()
        for pattern in (os.path.expanduser(pattern) for pattern in patterns):  # noqa: PTH111 (no path yet)
            paths = [Path(p) for p in glob.glob(pattern, recursive=True)]  # noqa: PTH207 (absolute patterns)
            files = [path.resolve() for path in paths if path.is_file()]
            if not files:
                raise DataError(f"data.corpus.files: {pattern} matches no file (looked from {Path.cwd()})")
            found.update(files)
        self.paths = sorted(found)
        self.origin = f"{len(self.paths)} files: {', '.join(patterns)}"

    def documents(self) -> Iterator[Document]:
        for path in self.paths:
            try:
                text = path.read_bytes().decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} is no UTF-8 text: byte 0x{error.object[error.start]:02x} at {error.start}. "
                    f"Convert it, such as by: iconv -f latin1 -t utf-8"
                ) from None
            except OSError as error:
                raise DataError(f"cannot read {path}: {error.strerror}") from error
            if text:
                yield Document(path.parent.name, text)


def open_corpus(config: CorpusConfig, cache: Path, say: Callable[[str], None] = print) -> Corpus:
    """The corpus that ``config`` names, downloaded into ``cache`` unless it is there.

    Where Debian's guide cannot be had, Django's catalogues take its place, and ``say`` tells so.

    Raises:
        DataError: if it cannot be had.
    """
    from trainer.data.django_po import Catalogues
    from trainer.data.fetch import FetchError
    from trainer.data.guide import Guide

    if config.source is CorpusSource.files:
        return Files(config.files)
    if config.source is CorpusSource.django_po:
        return Catalogues(cache)
    try:
        return Guide(cache)
    except FetchError as error:
        say(f"Debian's installation guide cannot be had here: {error}")
        say("In its place: Django's message catalogues (corpus django_po), from the Python package index")
        return Catalogues(cache)
