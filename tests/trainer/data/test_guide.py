"""Debian's guide: sections come out of it unwrapped, without tables of contents, in the right encoding."""

from __future__ import annotations

import shutil
import subprocess
import unicodedata
from collections import defaultdict
from pathlib import Path

import pytest

from trainer.data.fetch import FetchError
from trainer.data.files import DataError
from trainer.data.guide import Guide, decode, sections, unwrap, width

# In the shape of the guide: 79 columns, front matter, contents, chapters, sections, a table, code, a footnote.
SHAPED = """Mill Manual

Copyright nobody

━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━

Contents

Running a mill
1. Water
    1.1. Gates
    1.2. Wheels
2. Grain

Running a mill

This manual is for people who have been given a mill and do not know what to do
with it.

Chapter 1. Water

Contents

1.1. Gates
1.2. Wheels

Water comes first^[1] in this manual.

1.1.\xa0Gates

A gate is opened by turning the iron handle to the left until it does not want
to turn any more. There are four of them:

  • the upper gate, which is the only one that has to be opened in the morning
    before the others

  • the lower gate

Type the following:

# open upper
# open lower

┌──────┬──────┐
│ gate │ turns│
└──────┴──────┘

1.2. Wheels

They turn.

Chapter 2. Grain

Contents

2.1. Rye

Grain comes second.

2.1. Rye

See /usr/share/doc/mill/rye and then, when all of that has been read, the pages/
of rye.
"""


def test_sections_come_out_unwrapped_and_without_contents_tables_and_notes() -> None:
    assert sections(SHAPED) == [
        [
            "Running a mill",
            "This manual is for people who have been given a mill and do not know what to do with it.",
        ],
        ["Chapter 1. Water", "Water comes first in this manual."],
        [
            "1.1.\xa0Gates",
            "A gate is opened by turning the iron handle to the left until it does not want to turn any more. "
            "There are four of them:",
            "• the upper gate, which is the only one that has to be opened in the morning before the others",
            "• the lower gate",
            "Type the following:",
            "# open upper\n# open lower",
        ],
        ["1.2. Wheels", "They turn."],
        ["Chapter 2. Grain", "Grain comes second."],
        [
            "2.1. Rye",
            "See /usr/share/doc/mill/rye and then, when all of that has been read, the pages/of rye.",
        ],
    ]


def test_text_without_spaces_between_words_is_joined_without_spaces() -> None:
    line = "水" * 39
    assert unwrap([line, "車が回る。"], set()) == line + "車が回る。"
    assert unwrap(["水" * 20, "車が回る。"], set()) == "水" * 20 + "\n車が回る。"
    assert unwrap([line, "Linux 水"], set()) == line + " Linux 水"


def test_korean_that_was_cut_inside_a_word_is_healed() -> None:
    words = {"방앗간", "주인이", "수문을"}
    line = "강 " * 24  # 72 columns
    assert unwrap([line + "방앗간", "주인이"], words) == line + "방앗간 주인이"
    assert unwrap([line + "a 방앗", "간"], words) == line + "a 방앗간"


def test_only_russian_may_be_of_another_encoding() -> None:
    assert decode("мельница".encode(), "ru") == "мельница"
    assert decode("мельница".encode("koi8-r"), "ru") == "мельница"
    with pytest.raises(DataError, match="guide in de is not UTF-8"):
        decode("Mühle".encode("latin-1"), "de")


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Guide:
    """The real one."""
    if not shutil.which("apt-get"):
        pytest.skip("needs apt-get, which is not on this machine")
    try:
        return Guide(tmp_path_factory.mktemp("cache"))
    except FetchError as error:
        pytest.skip(f"Debian's guide cannot be had here: {error}")


def test_the_real_guide_gives_nineteen_languages_of_clean_text(guide: Guide) -> None:
    texts: dict[str, list[str]] = defaultdict(list)
    for document in guide.documents():
        texts[document.source].append(document.text)
    assert sorted(texts) == (
        "ca cs da de el en es fr id it ja ko nl pt ro ru sv vi zh_CN".split()  # noqa: SIM905
    )
    for language, documents in texts.items():
        text = "\n".join(documents)
        assert len(text.encode()) > 250_000, language
        assert not [c for c in set(text) if unicodedata.category(c) in ("Cc", "Co", "Cn") and c != "\n"]
        assert "\ufffd" not in text
        assert "Ã¤" not in text  # UTF-8 that was read as Latin-1
        assert "├" not in text
        assert len(documents) > 200, language
        long = [line for line in text.split("\n") if width(line) > 100]
        assert sum(map(len, long)) > 0.5 * len(text), f"{language} is still wrapped"
    assert share(texts["ru"], "CYRILLIC") > 0.6
    assert share(texts["el"], "GREEK") > 0.6
    assert share(texts["ko"], "HANGUL") > 0.5
    assert share(texts["ja"], "CJK", "HIRAGANA", "KATAKANA") > 0.5
    assert share(texts["zh_CN"], "CJK") > 0.4
    for title in ("Table of Contents", "Inhaltsverzeichnis", "目次", "Содержание\n", "Mục lục"):
        assert not [t for documents in texts.values() for t in documents if t.startswith(title)]
    assert any(t.startswith("1.1. Was ist Debian?\n\nDebian ist eine komplett aus") for t in texts["de"])
    # The licence stands untranslated in most translations; it counts once.
    licence = "Accompany it with a written offer, valid for at least three years, to give any third party"
    assert sum(licence in t for documents in texts.values() for t in documents) == 1


def share(documents: list[str], *scripts: str) -> float:
    """Part of the letters that belong to scripts, by the first word of their Unicode names."""
    letters = [c for text in documents for c in text if c.isalpha()]
    return sum(unicodedata.name(c, "").startswith(scripts) for c in letters) / len(letters)


def test_downloading_needs_no_shell(guide: Guide, tmp_path: Path) -> None:
    # A cache whose path a shell would take apart.
    folder = tmp_path / "a b; touch evil $(x)"
    try:
        assert Guide(folder).origin == guide.origin
    except FetchError as error:
        pytest.skip(f"the second download failed: {error}")
    assert not (tmp_path / "evil").exists()
    assert subprocess.run(["find", str(folder), "-name", "*.deb"], capture_output=True).stdout == b""
