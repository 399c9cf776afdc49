"""Where text comes from: one's own files, and Django's catalogues where Debian's guide cannot be had."""

from __future__ import annotations

import gettext
import io
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import CorpusConfig, CorpusSource
from trainer.data.corpus import Files, open_corpus
from trainer.data.django_po import Catalogues, messages
from trainer.data.fetch import FetchError, once, run
from trainer.data.files import DataError, lock


def test_files_are_documents_of_the_folder_they_lie_in(tmp_path: Path) -> None:
    for name in ("de/a.txt", "de/b.txt", "en/a.txt", "en/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"  text of {name}\n")
    (tmp_path / "en" / "empty.txt").touch()
    files = Files([str(tmp_path / "**" / "*.txt"), str(tmp_path / "de" / "*")])
    expected = [("de", "text of de/a.txt"), ("de", "text of de/b.txt"), ("en", "text of en/a.txt")]
    for _ in range(2):
        assert [(d.source, d.text) for d in files.documents()] == expected


def test_files_that_cannot_be_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.corpus\.files=\[\]"):
        Files([])
    with pytest.raises(DataError, match=r"\*\.txt matches no file"):
        Files([str(tmp_path / "*.txt")])
    (tmp_path / "latin.txt").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt is no UTF-8 text: byte 0xf6 at 2"):
        list(Files([str(tmp_path / "*.txt")]).documents())


def catalogue(pairs: list[tuple[str, str]], order: str) -> bytes:
    """A .mo file as msgfmt writes it."""
    header = ("", "Content-Type: text/plain; charset=UTF-8\n")
    rows = [(a.encode(), b.encode()) for a, b in sorted([header, *pairs])]
    at = 28 + 16 * len(rows)
    tables, blob = [], b""
    for column in range(2):
        for row in rows:
            tables.append(struct.pack(f"{order}2I", len(row[column]), at + len(blob)))
            blob += row[column] + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(rows), 28, 28 + 8 * len(rows), 0, 0)
    return head + b"".join(tables) + blob


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=9).map(str.strip).filter(bool)


@given(pairs=st.dictionaries(words, words, max_size=6), order=st.sampled_from("<>"))
def test_catalogues_of_either_byte_order_are_read(pairs: dict[str, str], order: str) -> None:
    raw = catalogue(list(pairs.items()), order)
    assert dict(messages(raw, "test")) == pairs
    reference = gettext.GNUTranslations(io.BytesIO(raw))
    assert all(reference.gettext(original) == translated for original, translated in pairs.items())


@pytest.mark.parametrize("raw", [b"", b"no catalogue at all, but long enough", catalogue([("a", "b")], "<")[:40]])
def test_what_is_no_catalogue_is_refused(raw: bytes) -> None:
    with pytest.raises(DataError, match="test"):
        messages(raw, "test")


def wheel_in(cache: Path) -> None:
    (cache / "django_po").mkdir(parents=True)
    with zipfile.ZipFile(cache / "django_po" / "django-0-py3-none-any.whl", "w") as wheel:
        for language, day in (("de", "Tag"), ("zh_Hans", "天"), ("en", "day")):
            plural = ("day\0days", f"{day}\0{day}e")
            raw = catalogue([("Yes", "Ja" if language == "de" else "是"), plural, ("URL", "URL")], "<")
            wheel.writestr(f"app/locale/{language}/LC_MESSAGES/django.mo", raw)
            wheel.writestr(f"app/locale/{language}/LC_MESSAGES/django.po", "")


def test_catalogues_give_translations_and_what_they_translate(tmp_path: Path) -> None:
    wheel_in(tmp_path)
    documents = list(Catalogues(tmp_path).documents())
    assert [(d.source, d.text) for d in documents] == [
        ("de", "Ja\nTage"),
        ("zh_Hans", "是\n天e"),
        ("en", "URL\nYes\ndays"),
    ]


def test_without_apt_the_catalogues_take_the_guides_place_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel_in(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    corpus = open_corpus(CorpusConfig(CorpusSource.debian_guide), tmp_path, said.append)
    assert isinstance(corpus, Catalogues)
    assert "no program apt-cache" in said[0]
    assert "django_po" in said[1]


def test_a_program_that_fails_or_hangs_is_reported_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"status 3: .*nothing here"):
        run([sys.executable, "-c", "import sys; print('nothing here', file=sys.stderr); sys.exit(3)"])
    with pytest.raises(FetchError, match="gave up after 0 s"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
    with pytest.raises(FetchError, match="no program absent"):
        run(["absent"])


def test_a_download_is_made_once_and_is_whole_or_absent(tmp_path: Path) -> None:
    calls: list[int] = []

    def fill(folder: Path) -> None:
        calls.append(1)
        (folder / "part").write_text("text")
        if len(calls) == 1:
            raise FetchError("the network went away")

    with pytest.raises(FetchError):
        once(tmp_path / "cache" / "text", fill)
    assert not (tmp_path / "cache" / "text").exists()
    for _ in range(2):
        assert (once(tmp_path / "cache" / "text", fill) / "part").read_text() == "text"
    assert len(calls) == 2


def test_a_lock_is_exclusive_and_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from trainer.data.files import lock\n"
        "with lock(pathlib.Path(sys.argv[1]), wait=False):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DataError, match="written by another process"), lock(tmp_path / "lock", wait=False):
            pass
    finally:
        holder.kill()
        holder.wait()
    with lock(tmp_path / "lock", wait=False):
        pass
