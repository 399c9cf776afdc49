"""The watch application in a real pseudo-terminal: it starts, updates, and leaves the terminal as it found it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyte
import pytest

from hpc.cli import main
from monitoring import layout
from monitoring.recorder import Recorder
from tests.monitoring.generate import BATCH, Shape, Try, finish, generate

PROGRAM = """
import sys
from pathlib import Path
from monitoring.terminal.app import Options, watch
from tests.monitoring.generate import Folders
run, how = Path(sys.argv[1]), sys.argv[2]
options = Options(interval=0.05, until_done=how == "done", unicode=how != "ascii")
last = watch(Folders([run]), None if how == "list" else run, options)
sys.exit(7 if last is not None and last.done else 0)
"""


class Person:
    """Somebody at a terminal in which runs are watched."""

    def __init__(
        self, run: Path, how: str = "", size: tuple[int, int] = (80, 24), words: Sequence[str] = (), **environment: str
    ) -> None:
        self.terminal = pyte.Screen(*size)
        self.stream = pyte.ByteStream(self.terminal)
        self.master, slave = pty.openpty()
        self.resize(*size)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        # Who runs the tests may have exported a size of its own, such as pytest-xdist.
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, *(words or ["-c", PROGRAM, str(run), how])],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**inherited, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment},
        )
        self.sent = b""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.terminal.resize(height, width)

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def look(self, seconds: float = 0.05) -> str:
        """What stands on the terminal after what came within some seconds."""
        while select.select([self.master], [], [], seconds)[0]:
            data = os.read(self.master, 1 << 16)
            self.sent += data
            self.stream.feed(data)
        return "\n".join(row.rstrip() for row in self.terminal.display)

    def sees(self, text: str) -> bool:
        ends = time.monotonic() + 20
        while time.monotonic() < ends:
            if text in self.look():
                return True
        return False

    def ended(self) -> int:
        """The exit status, with all that was printed taken in."""
        ends = time.monotonic() + 20
        while self.process.poll() is None and time.monotonic() < ends:
            self.look()
        self.look()
        return self.process.wait(1)

    def left(self) -> str:
        """What was printed once the screen had been given back."""
        return self.sent.rpartition(b"\x1b[?1049l")[2].decode()

    def as_found(self) -> bool:
        """The screen, the cursor, the mouse and the keyboard are as before."""
        given = [self.sent.rfind(code) for code in (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?1003l")]
        taken = [self.sent.rfind(code) for code in (b"\x1b[?1049h", b"\x1b[?25l", b"\x1b[?1003h")]
        back = all(last > first for last, first in zip(given, taken, strict=True))
        return back and termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(5)
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def people() -> Iterator[list[Person]]:
    started: list[Person] = []
    yield started
    for person in started:
        person.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return generate(tmp_path / "tiny_moe" / "20251122-1f2e")


def test_the_screen_follows_the_run_sending_only_what_changed(run: Path, people: list[Person]) -> None:
    person = Person(run)
    people.append(person)
    assert person.sees("step 290 of 500")
    person.look(0.3)
    before = len(person.sent)
    recorder = Recorder(layout.attempt_folder(run, 2), 0, 4, "tiny_moe", 2)
    recorder.step(step=291, tokens=291 * BATCH, loss=3.125)
    recorder.close()
    assert person.sees("step 291 of 500") and person.sees("loss 3.125")
    assert len(person.sent) - before < 12_000
    person.resize(120, 40)
    os.killpg(person.process.pid, signal.SIGWINCH)
    assert person.sees("validation_loss") and person.sees("node failure")
    person.press("7")
    assert person.sees("attempts/2/rank-0.log")


def test_nothing_is_sent_while_nothing_changes(run: Path, people: list[Person]) -> None:
    finish(run, Shape())
    person = Person(run)
    people.append(person)
    assert person.sees("FINISHED")
    person.look(0.5)
    before = len(person.sent)
    person.look(1.0)
    assert len(person.sent) == before


@pytest.mark.parametrize("how", ["q", "ctrl-c", "sigterm", "sigint"])
def test_whoever_leaves_finds_the_terminal_as_it_was(run: Path, people: list[Person], how: str) -> None:
    person = Person(run)
    people.append(person)
    assert person.sees("step 290 of 500")
    if how.startswith("sig"):
        person.process.send_signal({"sigterm": signal.SIGTERM, "sigint": signal.SIGINT}[how])
        assert person.ended() == (143 if how == "sigterm" else 0)
    else:
        person.press("q" if how == "q" else "\x03")
        assert person.ended() == 0
    if how != "sigterm":
        assert "running on noctua2 (EMULATED), step 290 of 500" in person.left()
    assert person.as_found()


def test_the_last_frame_and_the_summary_stay_when_the_run_ends(run: Path, people: list[Person]) -> None:
    person = Person(run, "done")
    people.append(person)
    assert person.sees("step 290 of 500")
    finish(run, Shape())
    assert person.ended() == 7
    rows = re.sub(r"\x1b\[[0-9;]*m", "", person.left()).replace("\r", "").split("\n")
    assert any("tiny_moe/20251122-1f2e" in row and "FINISHED" in row for row in rows)
    assert any("┤" in row for row in rows) and any("sample    The installer" in row for row in rows)
    assert any("attempts  3 (time limit, node failure, finished), 51 lost steps" in row for row in rows)
    assert person.as_found()


def test_a_terminal_without_unicode_gets_ascii(run: Path, people: list[Person]) -> None:
    person = Person(run, "ascii")
    people.append(person)
    assert person.sees("step 290 of 500") and person.sees("10.35+")
    for key in "234":
        person.press(key)
        person.look(0.3)
        assert all(row.isascii() for row in person.terminal.display)


def test_a_look_without_unicode_is_ascii(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with layout.rank_log(layout.attempt_folder(run, 2), 0).open("a", encoding="utf-8") as log:
        log.write("Prüfung … ─ 100 %\n")
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    assert main(["watch", str(run), "--plain"]) == 0
    sys.stdout.flush()
    assert "Pr?fung ~ - 100 %" in printed.getvalue().decode("ascii")


def test_no_color_is_respected(run: Path, people: list[Person]) -> None:
    person = Person(run, NO_COLOR="1")
    people.append(person)
    assert person.sees("step 290 of 500")
    person.press("4")
    assert person.sees("fair share")
    codes = {code for found in re.findall(rb"\x1b\[([0-9;]+)m", person.sent) for code in found.split(b";")}
    assert not codes & {b"%d" % n for n in (*range(30, 39), *range(40, 49), *range(90, 98), *range(100, 108))}


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(run: Path, people: list[Person]) -> None:
    person = Person(run, "list")
    people.append(person)
    assert person.sees("generated runs")
    person.press("\x1a")
    ends = time.monotonic() + 10
    while time.monotonic() < ends and _state(person.process.pid) != "T":
        person.look()
    assert _state(person.process.pid) == "T"
    person.process.send_signal(signal.SIGCONT)
    while time.monotonic() < ends and person.sent.count(b"\x1b[?1049h") < 2:
        person.look()
    person.look(0.3)  # keys typed before it has the terminal again are the shell's
    person.press("\r")
    assert person.sees("step 290 of 500")
    person.press("q")
    assert person.ended() == 0


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_command_lists_runs_and_opens_them(tmp_path: Path, people: list[Person]) -> None:
    run = generate(tmp_path / "llammlein" / "20251122-1f2e", Shape((Try(0, 60, "finished"),), steps=60, layers=()))
    person = Person(run, words=["-m", "hpc", "watch"], HPC_RUNS=str(tmp_path))
    people.append(person)
    assert person.sees("llammlein/20251122-1f2e") and person.sees("100.0%")
    person.press("\r")
    assert person.sees("1 overview") and person.sees("FINISHED")
    person.press("\x1b")
    assert person.sees("1 of 1 runs")
    person.press("q")
    assert person.ended() == 0 and person.as_found()


def test_keys_come_from_the_terminal_where_standard_input_does_not(run: Path, people: list[Person]) -> None:
    quiet = "import os; null = os.open('/dev/null', 0); os.dup2(null, 0); os.dup2(os.open('/dev/null', 1), 2)\n"
    person = Person(run, words=["-c", quiet + PROGRAM, str(run), ""])
    people.append(person)
    assert person.sees("step 290 of 500")
    person.press("q")
    assert person.ended() == 0
