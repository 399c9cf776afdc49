"""The corpus django_po: Django's message catalogues in about 100 languages, BSD-3, through pip download."""

from __future__ import annotations

import re
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from trainer.data.corpus import Document
from trainer.data.fetch import FetchError, once, run
from trainer.data.files import DataError

REQUIREMENT = "Django==5.2.*"
_CATALOGUE = re.compile(r"(?P<app>.+)/locale/(?P<language>[^/]+)/LC_MESSAGES/\w+\.mo")
_MAGIC = 0x950412DE  # of the GNU gettext .mo format, which this file reads


class Catalogues:
    """One document per application and language: its translated messages. English is what they translate."""

    def __init__(self, cache: Path) -> None:
        """Download the wheel into ``cache``, once.

        Raises:
            FetchError: if pip cannot get it.
        """
        folder = once(cache / "django_po", _download)
        wheels = sorted(folder.glob("*.whl"))
        if not wheels:
            raise DataError(f"{folder} holds no wheel. Remove it and prepare again")
        self._wheel = wheels[0]
        self.origin = f"message catalogues of {self._wheel.name}"

    def documents(self) -> Iterator[Document]:
        english: dict[str, dict[str, None]] = {}  # of each application, in the order of first sight
        with zipfile.ZipFile(self._wheel) as wheel:
            for name in sorted(wheel.namelist()):
                found = _CATALOGUE.fullmatch(name)
                if not found or found["language"] == "en":
                    continue
                pairs = messages(wheel.read(name), name)
                for original, _ in pairs:
                    english.setdefault(found["app"], {})[original] = None
                translated = [text for original, text in pairs if text != original]
                if translated:
                    yield Document(found["language"], "\n".join(dict.fromkeys(translated)))
        for originals in english.values():
            yield Document("en", "\n".join(originals))


def messages(raw: bytes, name: str) -> list[tuple[str, str]]:
    """The (original, translated) messages of a .mo file; of plurals the last form of each.

    Raises:
        DataError: if ``raw`` is none; ``name`` is for that message.
    """
    order = "<" if raw[:4] == struct.pack("<I", _MAGIC) else ">"
    try:
        magic, _, count, originals, translations = struct.unpack_from(f"{order}5I", raw)
        if magic != _MAGIC:
            raise DataError(f"{name} is no message catalogue")

        def text(table: int, index: int) -> str:
            length, at = struct.unpack_from(f"{order}2I", raw, table + 8 * index)
            return raw[at : at + length].decode("utf-8").split("\0")[-1].split("\x04")[-1].strip()

        pairs = [(text(originals, i), text(translations, i)) for i in range(count)]
    except (struct.error, UnicodeDecodeError) as error:
        raise DataError(f"{name} is a damaged message catalogue: {error}") from error
    return [(original, translated) for original, translated in pairs if original and translated]


def _download(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        run([*command, "--only-binary=:all:", "--dest", str(folder), REQUIREMENT])
    except FetchError as error:
        raise FetchError(
            f"cannot download {REQUIREMENT}: {error}. "
            "Where there is no network, use files of your own: data=files data.corpus.files=[...]"
        ) from error
