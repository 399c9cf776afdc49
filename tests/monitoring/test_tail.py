"""Readers take each whole line once, whatever was torn, damaged, truncated or replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring import tail as tail_module
from monitoring.layout import rank_records
from monitoring.recorder import PROTOCOL, Recorder, encode
from monitoring.tail import RecordTail, TextTail, events, last_record, last_step, newest, recent_steps, said_so_far
from monitoring.text import clean


def lines(count: int, first: int = 0) -> list[bytes]:
    made = encode(0, 1.0, "header", {"protocol": PROTOCOL, "run": "demo", "start": float(first)})
    for step in range(1, count):
        made += encode(len(made), 1.0 + step, "step", {"step": first + step, "tokens": step, "loss": 1.0 / step})
    return made


def take(tail: RecordTail) -> list[dict[str, Any]]:
    return [record for found in tail.read() for record in found.items]


def steps(records: list[dict[str, Any]]) -> list[int]:
    return [record["step"] for record in records if record["kind"] == "step"]


def test_a_file_torn_at_any_byte_loses_no_whole_line_and_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    made = lines(6)
    text = b"".join(made)
    for cut in range(len(text) + 1):
        path.write_bytes(text[:cut])
        tail = RecordTail(path)
        before = take(tail)
        assert len(before) == text[:cut].count(b"\n")
        with path.open("ab") as file:
            file.write(text[cut:])
        after = take(tail)
        assert [record["seq"] for record in before + after] == list(range(6))
        assert tail.bad == 0 and not tail.error
        assert not take(tail)


@given(st.lists(st.integers(0, 400), max_size=12))
def test_however_a_file_grows_each_record_comes_once(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    text = b"".join(lines(8))
    path = tmp_path_factory.mktemp("tail") / "rank-0.jsonl"
    tail = RecordTail(path)
    found = take(tail)
    done = 0
    for cut in [*sorted(cuts), len(text)]:
        with path.open("ab") as file:
            file.write(text[done : max(done, cut)])
        done = max(done, cut)
        found += take(tail)
    assert [record["seq"] for record in found] == list(range(8))


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 400)), max_size=8), st.integers(0, 3))
def test_a_write_of_which_a_part_landed_is_no_second_one(
    tmp_path_factory: pytest.TempPathFactory, failures: list[tuple[int, int]], gap: int
) -> None:
    writers = lines(12), lines(12, first=6)  # the second begins anew
    path = tmp_path_factory.mktemp("tail") / "rank-0.jsonl"
    tail, found = RecordTail(path), []
    for made in writers:
        del made[3 : 3 + gap]  # damage, or lines that somebody leaves out
        done = 0
        with path.open("ab", 0) as file:
            for count, landed in failures:
                batch = made[done : done + count]
                part = b"".join(batch)[:landed]
                file.write(part)
                found += take(tail)
                file.write(b"\n" * (not part.endswith(b"\n") and bool(part)) + b"".join(batch))
                found += take(tail)
                done += len(batch)
            file.write(b"".join(made[done:]))
    found += take(tail)
    assert found == [orjson.loads(line) for made in writers for line in made]
    assert take(RecordTail(path)) == found


def test_a_hole_of_nuls_costs_only_the_line_it_tore(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    made = lines(6)
    path.write_bytes(b"".join(made[:3]) + made[3][:20] + b"\0" * 4096 + b"".join(made[4:]))
    tail = RecordTail(path)
    assert steps(take(tail)) == [1, 2, 4, 5]
    assert tail.bad == 1


def test_a_hole_of_megabytes_is_passed_without_holding_it(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    made = lines(4)
    with path.open("wb") as file:
        file.write(b"".join(made[:2]))
        file.seek(20 << 20)
        file.write(b"".join(made[2:]))
    tail = RecordTail(path)
    assert steps(take(tail)) == [1, 2, 3]
    assert tail.bad >= 1


garbage = st.binary(max_size=40).map(lambda data: data.replace(b"\n", b""))
no_record = st.sampled_from(
    [
        *(b"[]", b"1", b'"x"', b"null", b'{"seq":"0","t":1,"kind":"step"}', b'{"seq":1}', b"NaN"),
        *(b"[1", b"2]", b'{"seq":1,"t":1,"kind":"step"},{"seq":2,"t":1,"kind":"step"}', b",", b"{", b"}"),
    ]
)


@given(st.lists(st.tuples(st.integers(0, 4), garbage | no_record), max_size=8))
def test_garbage_lines_are_skipped_and_counted(
    tmp_path_factory: pytest.TempPathFactory, inserted: list[tuple[int, bytes]]
) -> None:
    made = lines(5)
    parts = [[line] for line in made]
    for place, data in inserted:
        parts[place].append(data + b"\n")
    path = tmp_path_factory.mktemp("tail") / "rank-0.jsonl"
    path.write_bytes(b"".join(part for group in parts for part in group))
    tail = RecordTail(path)
    assert [record["seq"] for record in take(tail)] == list(range(5))
    assert tail.bad >= len([data for _, data in inserted if data.strip(b"\0") and data])


@pytest.mark.parametrize("count", [2, 5, 9])
def test_a_replaced_file_is_read_anew_whatever_its_size(tmp_path: Path, count: int) -> None:
    path = tmp_path / "rank-0.jsonl"
    path.write_bytes(b"".join(lines(5)))
    tail = RecordTail(path)
    take(tail)
    path.write_bytes(b"".join(lines(count, first=100)))
    first, *_ = list(tail.read())
    assert first.again and steps(first.items) == list(range(101, 100 + count))


def test_a_truncated_and_a_deleted_file_are_told(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    path.write_bytes(b"".join(lines(5)))
    tail = RecordTail(path)
    take(tail)
    path.write_bytes(b"")
    assert [found.again for found in tail.read()] == [True]
    path.write_bytes(b"".join(lines(3)))
    assert steps(take(tail)) == [1, 2]
    path.unlink()
    assert [found.again for found in tail.read()] == [True]
    assert not list(tail.read()) and not tail.error


def test_what_is_no_file_is_an_error_in_words(tmp_path: Path) -> None:
    tail = RecordTail(tmp_path)
    assert not take(tail) and tail.error


def test_records_of_a_newer_protocol_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    header = orjson.dumps({"seq": 0, "t": 1.0, "kind": "header", "protocol": PROTOCOL + 1}) + b"\n"
    path.write_bytes(header + b"".join(lines(3)[1:]))
    tail = RecordTail(path)
    assert not take(tail) and tail.newer == PROTOCOL + 1


def test_a_newer_protocol_is_seen_by_who_begins_in_the_middle(tmp_path: Path) -> None:
    path = rank_records(tmp_path, 0)
    header = {"seq": 0, "t": 1.0, "kind": "header", "host": "n" * 300, "protocol": PROTOCOL + 1}
    path.write_bytes(orjson.dumps(header) + b"\n" + b"".join(lines(2000)[1:]))
    tail = RecordTail(path, begin=1 << 12)
    assert not take(tail) and tail.newer == PROTOCOL + 1
    assert recent_steps(tmp_path) == [] and list(newest(path, "step")) == []
    path.write_bytes(b"".join(lines(2000)))
    assert 0 < len(take(RecordTail(path, begin=1 << 12))) < 2000


KINDS = ("step", "rank", "device", "header", "dropped", "event")


@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS), st.sampled_from(["", '"kind":"rank"', '{"kind":"device"}'])), max_size=40
    ),
    st.lists(st.sampled_from(KINDS), max_size=3),
    st.lists(st.integers(0, 3000), max_size=4),
    st.lists(
        st.sampled_from([b"\0\0", b"{torn", b"\n", b'{"kind":"rank"}\n', b'{"seq":1,"t":1,"kind":"rank","a":}\n'])
    ),
)
def test_of_some_kinds_as_many_records_are_read_as_of_all(
    tmp_path_factory: pytest.TempPathFactory,
    made: list[tuple[str, str]],
    kinds: list[str],
    cuts: list[int],
    damage: list[bytes],
) -> None:
    path = tmp_path_factory.mktemp("records") / "rank-0.jsonl"
    whole = [orjson.dumps({"seq": n, "t": 1.0, "kind": kind, "said": said}) for n, (kind, said) in enumerate(made)]
    data = b"".join(line + b"\n" + (damage[n] if n < len(damage) else b"") for n, line in enumerate(whole))
    every, some = RecordTail(path), RecordTail(path, kinds=kinds)
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for end in (*sorted(cuts), len(data)):
        path.write_bytes(data[:end])
        for tail, records in zip((every, some), found, strict=True):
            records += take(tail)
    assert found[1] == [record for record in found[0] if record["kind"] in {"header", *kinds}]
    assert some.bad <= every.bad


def test_the_newest_records_of_a_kind_are_found_behind_a_day_of_others(tmp_path: Path) -> None:
    path, spoken = rank_records(tmp_path, 0), lines(200)
    sample = {"gpu_util": 0.0, "power_w": 402.123, "energy_j": 123456789.123, "host_memory_gib": 120.123456}
    samples = b"".join(encode(300, 500.0, "device", sample)) * (24 * 360)
    path.write_bytes(b"".join(spoken) + samples + spoken[5][:30])
    assert [record["step"] for record in recent_steps(tmp_path)] == list(range(199, 149, -1))
    assert len(list(newest(path, "device"))) == 24 * 360
    assert last_step(tmp_path) == 199
    assert list(newest(tmp_path / "nowhere", "step")) == []


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 60), st.integers(0, 30))
def test_reading_back_in_blocks_finds_each_whole_line_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], block: int, torn: int
) -> None:
    path = tmp_path_factory.mktemp("records") / "rank-0.jsonl"
    made = [
        orjson.dumps({"seq": n, "t": 1.0, "kind": "step" if n % 3 else "rank", "said": "x" * size}) + b"\n"
        for n, size in enumerate(sizes)
    ]
    path.write_bytes(b"".join(made) + (b'{"seq":9,"t":1.0,"kind":"step"}')[:torn])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tail_module, "_STEP_BACK", block)
        found = [record["seq"] for record in newest(path, "step")]
    assert found == [n for n in reversed(range(len(sizes))) if n % 3]


def test_the_newest_step_is_found_from_the_end(tmp_path: Path) -> None:
    assert last_record(tmp_path) is None and last_step(tmp_path) is None
    made = lines(3000)
    rank_records(tmp_path, 0).write_bytes(b"".join(made) + made[5][:30])
    record = last_record(tmp_path)
    assert record is not None and (record["step"], record["tokens"]) == (2999, 2999)
    assert last_step(tmp_path) == 2999
    [noise] = encode(0, 1.0, "event", {"event": "x", "fields": {"a": "b" * 500}})
    rank_records(tmp_path, 0).write_bytes(b"".join(made) + noise * 300)
    assert last_step(tmp_path) == 2999


def test_a_log_is_followed_with_its_unfinished_line(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.log"
    tail = TextTail(path, keep=3)
    assert tail.read() == ()
    path.write_text("one\ntwo\nthr")
    assert tail.read() == ("one", "two", "thr")
    with path.open("a") as file:
        file.write("ee\nfour\n")
    assert tail.read() == ("two", "three", "four")
    path.write_text("new\n")
    assert tail.read() == ("new",)


def test_of_a_huge_log_only_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.log"
    with path.open("wb") as file:
        file.truncate(5 << 30)
        file.seek(0, 2)
        file.write(b"\nthe end\n")
    assert TextTail(path).read()[-1] == "the end"


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        ("plain [bold]x[/] :smile:", "plain [bold]x[/] :smile:"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jgone", "gone"),
        ("\x1bPq#0\x1b\\sixel", "sixel"),
        ("\x1b[?1049hscreen", "screen"),
        ("\x1b", ""),
        (" 10%\r 20%\r 30%", " 30%"),
        (" 10%\r", " 10%"),
        ("a\tb", "a   b"),
        ("bell\x07 back\x08 nul\0", "bell\ufffd back\ufffd nul\ufffd"),
        ("\u202egnp.exe", "\ufffdgnp.exe"),
        ("漢字 ü é", "漢字 ü é"),
    ],
)
def test_text_from_outside_is_printed_and_never_acted_on(given_: str, shown: str) -> None:
    assert clean(given_) == shown


@given(st.text())
def test_cleaned_text_has_nothing_a_terminal_acts_on(text: str) -> None:
    shown = clean(text)
    assert clean(shown) == shown
    assert not any(
        ord(char) < 32 or 127 <= ord(char) < 160 or char in "\u202a\u202b\u202d\u202e\u2066" for char in shown
    )


def test_events_of_a_name_are_found_among_damage_and_other_lines(tmp_path: Path) -> None:
    (spike,) = encode(1, 1.0, "event", {"event": "spike", "fields": {"step": 3}})
    (other,) = encode(2, 1.0, "event", {"event": "checkpoint", "fields": {"step": 4, "said": '"event":"spike"'}})
    (rewound,) = encode(3, 1.0, "event", {"event": "rewound", "fields": {"step": 2, "skipped": [8, 12]}})
    text = b"".join([*lines(4), spike, other, b"\0" * 9 + rewound, spike[:-9]])
    rank_records(tmp_path, 0).write_bytes(text)
    found = [(event["event"], event["step"]) for event in events(tmp_path, {"spike", "rewound"})]
    assert found == [("spike", 3), ("rewound", 2)]
    assert list(events(tmp_path / "nowhere", {"spike"})) == []


def test_samples_of_devices_are_no_word(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 0, 1, "run", 0)
    recorder.step(step=1, tokens=1, loss=2.0)
    recorder.sync()
    path = rank_records(tmp_path, 0)
    spoken = path.stat().st_size
    for _ in range(2000):
        recorder.device(gpu_util=0.5, power_w=300.0)
    recorder.sync()
    assert said_so_far(path) == spoken < path.stat().st_size
    recorder.step(step=2, tokens=2, loss=2.0)
    recorder.close()
    assert said_so_far(path) == path.stat().st_size
    sample = b"".join(encode(9, 1.0, "device", {"power_w": 300.0}))
    with path.open("ab") as file:
        file.write(sample * 6000)
    later = said_so_far(path)
    with path.open("ab") as file:
        file.write(sample * 200)
    assert said_so_far(path) == later  # hours of samples are no word either
    (tmp_path / "rank-0.log").write_text("word\n")
    assert said_so_far(tmp_path / "rank-0.log") == 5
    assert said_so_far(tmp_path / "none") == 0
