"""The corpus debian_guide: Debian's installation guide in 19 languages, GPL-2, through apt-get download.

The package holds each translation as plain text of 79 columns: front matter, tables of contents, then
chapters of numbered sections with wrapped paragraphs, code, and tables drawn with lines. What comes out are
the sections, one document each, every paragraph on one line.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from trainer.data.corpus import Document
from trainer.data.fetch import FetchError, once, run
from trainer.data.files import DataError

COLUMNS = 79
_PACKAGE = "installation-guide-"
_VERSION = "VERSION"
_APT_GET = ["apt-get", "-o", "Acquire::http::Timeout=30", "-o", "Acquire::https::Timeout=30"]
# "3.4.1. Title": a heading, or a line of a table of contents.
_ENTRY = re.compile(r"\s*(\d+|[A-Z])(\.\d+)+\.\s\S")
_CHAPTER_ENTRY = re.compile(r"(\d+|[A-Z])\.\s\S")
_ITEM = re.compile(r"\s*([•*+#-]|\d+\.|[a-z]\.) ")
_DRAWN = re.compile(r"[\u2500-\u257f]|^\s*[+|].*[+|]$|^-{20,}$", re.MULTILINE)
_NOTE = re.compile(r"^\^\[\d+\] |\^\[\d+\]", re.MULTILINE)
_UNTRANSLATED = 40  # a paragraph of so many characters that the English guide has too was not translated


class Guide:
    """The sections of all translations; a paragraph left in English counts once, as English."""

    def __init__(self, cache: Path) -> None:
        """Download the package into ``cache``, once, and unpack it there; needs no root.

        Raises:
            FetchError: if apt-get cannot get it.
        """
        folder = once(cache / "debian_guide", _download)
        texts = {path.name.split(".")[1]: path for path in folder.glob("install.*.txt.gz")}
        if "en" not in texts:
            raise DataError(f"{folder} holds no guide. Remove it and prepare again")
        self._texts = {"en": texts["en"], **dict(sorted(texts.items()))}
        self.origin = f"Debian package {(folder / _VERSION).read_text().strip()}"

    def documents(self) -> Iterator[Document]:
        english: set[str] = set()
        for language, path in self._texts.items():
            for section in sections(decode(gzip.decompress(path.read_bytes()), language)):
                if language == "en":
                    english.update(section)
                else:
                    section = [p for p in section if len(p) < _UNTRANSLATED or p not in english]
                if len(section) > 1:
                    yield Document(language, "\n\n".join(section))


def decode(raw: bytes, language: str) -> str:
    """The guide is UTF-8 in all languages but Russian, which is KOI8-R."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if language == "ru":
            return raw.decode("koi8-r")
        raise DataError(f"the guide in {language} is not UTF-8, and no other encoding is known") from error


def sections(text: str) -> list[list[str]]:
    """The numbered sections of a guide: each its heading, then its paragraphs, code and items, unwrapped.

    Left out are tables of contents and all before the first, drawn tables, rules and marks of footnotes.
    """
    blocks = [b for b in re.split(r"\n\s*\n", _NOTE.sub("", text)) if b.strip() and not _DRAWN.search(b)]
    inner = _words_inside_lines(text)
    contents = {i for i, block in enumerate(blocks) if _is_contents(block)}
    titles = {blocks[i - 1].strip() for i in contents if i}  # "Table of Contents", in this language
    found: list[list[str]] = [[]]
    started = False
    for i, block in enumerate(blocks):
        lines = [line.rstrip() for line in block.strip("\n").split("\n")]
        after_title = i > 0 and blocks[i - 1].strip() in titles
        if i in contents or (after_title and _ENTRY.match(block)):
            started = True  # whatever stands before the first table of contents is front matter
        elif block.strip() in titles or not started:
            continue
        else:
            chapter = i + 1 < len(blocks) and blocks[i + 1].strip() in titles
            if chapter or (_ENTRY.match(block) and len(lines) <= 2):
                found.append([])
            found[-1].append(unwrap(lines, inner))
    return [section for section in found if section]


def unwrap(lines: list[str], words: set[str]) -> str:
    """Undo the wrapping of a paragraph, and of nothing else; no line is empty or ends with blanks.

    A line break is a wrap only where the next word would not have fitted on the line; all other breaks, as in
    code and short items, stay. ``words`` are known to be whole: Korean is wrapped inside words too.
    """
    indent = min(len(line) - len(line.lstrip()) for line in lines)
    text = lines[0][indent:]
    for before, line in pairwise(lines):
        last, first = before.strip()[-1:], line.strip()[:1]
        korean = _is_hangul(last) and _is_hangul(first)
        glue = "" if last in "/=" or (_is_wide(last) and _is_wide(first) and not korean) else " "
        unit = first if _is_wide(first) else line.split()[0]
        if width(before) + len(glue) + width(unit) <= COLUMNS or _ITEM.match(line):
            text += "\n" + line[indent:]
        else:
            text += (_korean_glue(before, line, words) if korean else glue) + line.strip()
    return text


def width(text: str) -> int:
    """Columns of a terminal that ``text`` takes."""
    return sum(0 if unicodedata.combining(c) else 2 if _is_wide(c) else 1 for c in text)


def _is_wide(character: str) -> bool:
    return character != "" and unicodedata.east_asian_width(character) in "WF"


def _is_hangul(character: str) -> bool:
    return "\uac00" <= character <= "\ud7a3"


def _korean_glue(before: str, line: str, words: set[str]) -> str:
    """A space, where the line had room for one more syllable; otherwise what ``words`` make more likely."""
    if width(before) + 2 <= COLUMNS:
        return " "
    last, first = before.split()[-1], line.split()[0]
    return " " if last + first not in words and (last in words or first in words) else ""


def _words_inside_lines(text: str) -> set[str]:
    """Words that stand between two others on their line, so that no wrap can have cut them."""
    return {word for line in text.split("\n") for word in line.split()[1:-1]}


def _is_contents(block: str) -> bool:
    """Whether a block is a table of contents: at least two lines, most of them numbered titles."""
    lines = block.split("\n")
    entries = sum(1 for line in lines if _ENTRY.match(line) or _CHAPTER_ENTRY.match(line))
    dotted = sum(1 for line in lines if _ENTRY.match(line))
    return len(lines) > 1 and dotted > 1 and entries > 0.6 * len(lines)


def _download(folder: Path) -> None:
    """Put the texts of the package into ``folder``, and its version beside them."""
    try:
        run([*_APT_GET, "download", _package()], cwd=folder)
    except FetchError:
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise
        # The package lists of a fresh container are absent, those of an old one name files that are gone.
        run([*_APT_GET, "update"])
        run([*_APT_GET, "download", _package()], cwd=folder)
    archive = next(folder.glob("*.deb"))
    run(["dpkg-deb", "-x", archive.name, "unpacked"], cwd=folder)
    for text in folder.glob("unpacked/usr/share/doc/*/*/install.*.txt.gz"):
        text.rename(folder / text.name)
    (folder / _VERSION).write_text(f"{archive.stem}\n")
    shutil.rmtree(folder / "unpacked")
    archive.unlink()


def _package() -> str:
    """The guide's package for this machine's architecture, or for another: the text hardly differs."""
    found = run(["apt-cache", "search", "--names-only", f"^{_PACKAGE}"]).splitlines()
    names = sorted(line.split()[0] for line in found if line.strip())
    if not names:
        raise FetchError(f"apt knows no package {_PACKAGE}*. Update its lists as root: apt-get update")
    wanted = [_PACKAGE + run(["dpkg", "--print-architecture"]).strip(), _PACKAGE + "amd64"]
    return next((name for name in wanted if name in names), names[0])
