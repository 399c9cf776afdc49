"""What the views are drawn with: pages of logs of any length, plots, heat maps."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from monitoring.goodput import Bucket, Span
from monitoring.terminal.heat import Scale, columns, heat
from monitoring.terminal.pager import Pager, Search
from monitoring.terminal.plot import Line, Window, plot, window
from monitoring.terminal.scroll import Scroll
from monitoring.terminal.views.attempts import bar, legend

# -- logs ----------------------------------------------------------------------------------------------------------

LINES = st.lists(
    st.text(st.characters(blacklist_characters="\n", blacklist_categories=("Cs",)), max_size=12), max_size=60
)


class Counting(Pager):
    """A pager that knows how many bytes it read."""

    bytes_read = 0

    def read(self, at: int, size: int) -> bytes:
        data = super().read(at, size)
        self.bytes_read += len(data)
        return data


@settings(max_examples=60)
@given(LINES, st.booleans(), st.integers(0, 70), st.integers(1, 20))
def test_a_page_is_what_the_lines_are(tmp_path_factory, lines: list[str], ended: bool, first: int, height: int) -> None:
    text = "\n".join(lines) + ("\n" if ended and lines else "")
    whole = text.split("\n")[: -1 if text.endswith("\n") or not text else None]
    file = tmp_path_factory.mktemp("log") / "log"
    file.write_bytes(text.encode())
    pager = Pager(file)
    pager.refresh()
    assert [line.text for line in pager.lines(height)] == whole[-height:]
    pager.begin()
    assert [line.text for line in pager.lines(height)] == whole[:height]
    if first:
        pager.move(first, height)
    expected = whole[-height:] if pager.follows else whole[first : first + height]
    assert [line.text for line in pager.lines(height)] == expected


def test_a_page_begins_where_blocks_end(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("monitoring.terminal.pager.BLOCK", 7)
    file = tmp_path / "log"
    file.write_text("".join(f"{n:06}\n" for n in range(100)))
    pager = Pager(file)
    pager.refresh()
    for height in range(1, 20):
        assert [line.text for line in pager.lines(height)] == [f"{n:06}" for n in range(100 - height, 100)]


def test_a_log_of_a_gigabyte_is_not_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("wb") as out:
        out.write(b"first\n")
        out.truncate(1 << 30)
        out.seek(1 << 30)
        out.write(b"\nbefore the last\nlast\n")
    pager = Counting(file)
    pager.refresh()
    assert [line.text for line in pager.lines(2)] == ["before the last", "last"]
    pager.move(-1, 2)
    pager.begin()
    assert pager.lines(1)[0].text.startswith("first")
    assert pager.bytes_read < 20 << 20
    search = Search(pager, "FIRST")
    search.go_on()
    assert "searching" in search.said or "nothing" in search.said or "byte" in search.said  # and not for a second


def test_a_log_that_becomes_shorter_is_another_one(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("a\n" * 100)
    pager = Pager(file)
    pager.refresh()
    pager.begin()
    file.write_text("b\n")
    pager.refresh()
    assert pager.follows and [line.text for line in pager.lines(5)] == ["b"]
    file.unlink()
    pager.refresh()
    assert pager.lines(5) == [] and pager.error == "not there yet"


@settings(max_examples=40)
@given(st.integers(0, 300), st.integers(1, 40))
def test_a_search_finds_each_place_once(tmp_path_factory, length: int, block: int) -> None:
    import monitoring.terminal.pager as module

    before, module.SEARCH_BLOCK = module.SEARCH_BLOCK, block
    try:
        file = tmp_path_factory.mktemp("log") / "log"
        text = "".join("needle\n" if n % 37 == 5 else f"{n}\n" for n in range(length))
        file.write_text(text)
        pager = Pager(file)
        pager.refresh()
        places = [n for n in range(len(text)) if text.startswith("needle", n)]
        search, found = Search(pager, "Needle"), []
        search.go_on()
        while "at byte" in search.said:
            found.append(int(search.said.rpartition(" ")[2].replace(",", "")))
            search.said = ""
            search.again(forward=False)
            search.go_on()
        assert found == places[::-1]
    finally:
        module.SEARCH_BLOCK = before


def test_a_search_for_one_letter_goes_on_to_the_end(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"." * (3 << 20) + b"\nX\n")
    pager = Pager(file)
    pager.refresh()
    pager.begin()
    search = Search(pager, "x")
    search.again(forward=True)
    while search.said.startswith("searching") or not search.said:
        search.go_on()
    assert search.said == f"'x' at byte {(3 << 20) + 1:,}"


@pytest.mark.parametrize(
    ("text", "line"),
    [("prüfung", "PRÜFUNG"), ("PRÜFUNG", "prüfung"), ("проверка", "ПРОВЕРКА"), ("straße", "STRAßE"), ("ÿ", "aŸ")],
)
def test_a_search_takes_capitals_for_small_letters_in_every_alphabet(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "log"
    file.write_text(f"first\n{line}\nlast\n", "utf-8")
    pager = Pager(file)
    pager.refresh()
    search = Search(pager, text)
    search.go_on()
    assert "at byte" in search.said


# -- plots ---------------------------------------------------------------------------------------------------------


def line(y: list[float], **more) -> Line:
    values = np.array(y)
    return Line(np.arange(len(y), dtype=float), values, values, **more)


def cells(rows: list[Text]) -> list[str]:
    return [row.plain[8:] for row in rows]


@settings(max_examples=60)
@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=200),
    st.integers(20, 90),
    st.integers(2, 20),
)
def test_the_extremes_are_at_the_edges(y: list[float], width: int, height: int) -> None:
    drawn = line(y)
    seen = window([drawn], 0, max(1, len(y) - 1))
    rows = plot([drawn], seen, width, height)
    assert len(rows) == height and all(row.cell_len == width for row in rows)
    if len({value for value in y if math.isfinite(value)}) > 1:
        assert cells(rows)[0].strip() and cells(rows)[-1].strip()


def test_a_spike_is_drawn_whatever_the_width() -> None:
    x = np.arange(100.0)
    high = np.where(x == 57, 9.0, 1.0)
    drawn = Line(x, np.ones(100), high)
    rows = cells(plot([drawn], window([drawn], 0, 99), 30, 8))
    assert rows[0].strip()


def test_values_that_are_not_above_zero_have_no_logarithm() -> None:
    drawn = line([0.0, 10.0, 1000.0, -5.0])
    seen = window([drawn], 0, 3, log=True)
    assert (seen.low, seen.high) == (1.0, 3.0)
    rows = plot([drawn], seen, 40, 5, log=True)
    assert "1000┤" in rows[0].plain and "10.00┤" in rows[-1].plain


def test_a_dotted_line_has_gaps_and_a_letter_marks_the_end() -> None:
    flat = [1.0] * 100
    solid, dotted = (
        plot([line(flat, dotted=d, mark=m)], Window(0, 99, 0, 2), 60, 5) for d, m in [(False, "A"), (True, "")]
    )
    assert "A" in "".join(cells(solid)) and "".join(cells(solid)).rstrip().endswith("A")
    assert max(map(_blanks, cells(dotted))) > max(map(_blanks, cells(solid)))


def _blanks(row: str) -> int:
    inner = row.strip()
    return inner.count(" ") if inner else 0


def test_a_cursor_stands_in_the_plot() -> None:
    rows = plot([line([1.0, 2.0, 1.0])], Window(0, 2, 0, 3), 50, 6, cursor=1.0)
    assert sum("│" in row for row in cells(rows)) >= 3
    rows = plot([line([1.0, 2.0, 1.0])], Window(0, 2, 0, 3), 50, 6, cursor=1.0, unicode=False)
    assert all(row.plain.isascii() for row in rows)


# -- heat maps -----------------------------------------------------------------------------------------------------

SCALE = Scale((1.0, 2.0), "·▒█", ".+#", ("a", "b", "c"))


def test_shades_tell_levels_without_colour() -> None:
    rows = heat(np.array([[0.5, 1.5, 3.0, math.nan]]), SCALE)
    assert rows[0].plain == "·▒█ "
    assert heat(np.array([[0.5, 1.5, 3.0]]), SCALE, unicode=False)[0].plain == ".+#"


def test_the_greatest_of_a_column_is_kept_and_few_steps_are_wide() -> None:
    x = np.arange(1000.0)
    values = np.where(x == 500, 9.0, 1.0)[None]
    assert np.nanmax(columns(x, values, 20, 0, 999)) == 9.0
    uneven = np.array([[4.0, np.nan, 1.0, 2.0, np.nan, np.nan]])
    found = columns(np.arange(6.0), uneven, 3, 0, 6, mean=True)
    np.testing.assert_array_equal(found, [[4.0, 1.5, np.nan]])
    wide = columns(np.array([0.0, 5.0, 10.0]), np.array([[1.0, 2.0, 3.0]]), 11, 0, 10)
    assert wide[0].tolist() == [1.0] * 5 + [2.0] * 5 + [3.0]
    assert np.isnan(columns(np.empty(0), np.empty((2, 0)), 4, 0, 1)).all()


# -- attempts ------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(list(Bucket)), st.floats(0, 1e6)), max_size=20), st.integers(20, 200))
def test_the_bar_fits_and_the_legend_has_every_bucket(parts: list[tuple[Bucket, float]], width: int) -> None:
    spans, begin = [], 1.7e9
    for bucket, seconds in parts:
        spans.append(Span(bucket, begin, begin + seconds))
        begin += seconds
    rows = [*bar(spans, begin, width), *legend(spans, width)] if begin > 1.7e9 else []
    assert all(row.cell_len <= max(width, 34) for row in rows)
    text = "\n".join(row.plain for row in rows)
    assert all(bucket.value in text for bucket in {span.bucket for span in spans if span.seconds > 0})


# -- scrolling -----------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 50),
    st.integers(1, 20),
    st.lists(st.sampled_from(["up", "down", "pageup", "pagedown", "home", "end"])),
)
def test_scrolling_stays_within_the_rows(many: int, height: int, keys: list[str]) -> None:
    rows = [Text(str(number)) for number in range(many)]
    scroll = Scroll()
    for key in keys:
        scroll.press(key)
        shown = scroll.part(rows, height)
        assert len(shown) == min(many, height)
    scroll.press("end")
    assert not many or scroll.part(rows, height)[-1].plain == str(many - 1)
